"""SAEs on activations whose dictionary is known: which variant finds it?

    nice python -m launch.known_dictionary --seeds=3

512 directions in 128 channels, active with probabilities over three decades, noise, and an offset that is
larger than the activations' spread. Expected: the best variant recovers at least 0.9 of the features more
frequent than 1e-3, a frozen random decoder far fewer.
`configs/known_dictionary.py:small` is a form for a test.
"""

from ml_collections import ConfigDict

from configs import demo


def get_config(form: str = "full") -> ConfigDict:
    """The truth, the settings that all variants share, and for each row of the table what it changes."""
    if form not in ("full", "small"):
        raise ValueError(f"configs/known_dictionary.py:{form}: the forms are full and small")
    config = ConfigDict()
    config.seed = 0
    config.truth = dict(n_true=512, n_channels=128, rarest=1e-4, commonest=1e-1, noise=0.05, offset=5.0)
    config.n_test_vectors = 32768
    config.n_steps = 2000
    config.batch_size = 1024
    config.dead_after_steps = 100
    config.sae = demo.get_config().sae
    config.sae.update(
        n_features=1024,
        learning_rate=2e-3,
        lr_warmup_steps=100,
        lr_decay_share=0.3,
    )
    active = dict(k=8, aux_alpha=1 / 8)
    config.rows = dict(
        relu_l1=dict(variant="relu_l1", relu_l1=dict(l1=3.0, l1_warmup_steps=400), learning_rate=1e-2),
        topk=dict(variant="topk", topk=active),
        batch_topk=dict(variant="batch_topk", batch_topk=active),
        matryoshka=dict(variant="matryoshka", matryoshka=active),
        jumprelu=dict(
            variant="jumprelu",
            jumprelu=dict(l0=2.0, l0_warmup_steps=800, bandwidth=0.5),
            learning_rate=1e-2,
        ),
        gated=dict(variant="gated", gated=dict(l1=6.0, l1_warmup_steps=400), learning_rate=1e-2),
        frozen_decoder=dict(variant="topk", topk=active, frozen="decoder"),
        frozen_encoder=dict(variant="topk", topk=active, frozen="encoder"),
    )
    if form == "small":
        config.truth.update(n_true=64, n_channels=32, rarest=1e-3, offset=3.0)
        config.n_test_vectors, config.n_steps, config.batch_size = 8192, 700, 512
        config.sae.update(n_features=128, learning_rate=5e-3)
        for row in config.rows.values():
            if row.variant in ("topk", "batch_topk", "matryoshka"):
                row[row.variant].k = 2
    return config
