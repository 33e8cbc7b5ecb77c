"""The embedded study: drawn aircraft, a small ConvNeXt, a TopK SAE. Minutes on two CPU cores.

    python -m launch.pipeline --config=configs/demo.py --workdir=runs/demo

Expected: test accuracy above 0.80, SAE fvu below 0.25 at l0 of at most C/8, accuracy recovered above 0.9.
`configs/demo.py:small` is the same study in a form small enough for a test.
"""

from ml_collections import ConfigDict


def get_config(form: str = "full") -> ConfigDict:
    """The config; `form` is "full" or "small"."""
    from jsae.sae import variants

    if form not in ("full", "small"):
        raise ValueError(f"configs/demo.py:{form}: the forms are full and small")
    config = ConfigDict()
    config.seed = 0  # initialisation, order, augmentation
    config.data = dict(
        kind="synthetic_aircraft",
        seed=0,  # the drawn set
        dir="",
        image_size=96,
        banner_px=0,
        label_level="variant",
        train_split="train",
        fit="squash",
        crop="none",
        val_share=0.15,  # of each class, where image_folder or arrays come without splits
        test_share=0.15,
        on_bad_image="error",
        cache_dir="",  # "" is $JSAE_CACHE, or ~/.cache/jsae
        n_train=4096,
        n_val=320,
        n_test=1536,
        tied="",  # "sky" and "sky_mostly" give the class away in train (jsae/data/tied_sky.py)
    )
    config.classifier = dict(
        workdir="",  # another study's, to take its classifier
        pretrained="",  # a .safetensors file to fine-tune from; arch and the like are then the file's
        arch="demo",
        depths=(0, 1, 1, 2),  # no block at 48x48, where they cost most
        dims=(16, 16, 32, 128),
        stem_stride=2,  # a cell of stage 4 is 16 px, the grid 6x6
        init="fan_in",
        calibrate_norms=True,
        layer_scale=1.0,
        n_epochs=12.0,
        warmup_epochs=0.5,
        batch_size=32,
        learning_rate=2e-3,
        weight_decay=0.05,
        clip_norm=1.0,
        label_smoothing=0.1,
        drop_path=0.0,
        ema_decay=0.99,
        layer_decay=1.0,  # below 1, blocks far from the head learn more slowly
        augmentation=dict(crop="pad", pad_px=6, flip=True, trivial=0.0, erase=0.0, mix="none", mix_alpha=1.0),
        dtype="float32",  # of the computation, or bfloat16; the state is float32
        micro_batches=1,
        remat=False,
        log_every_steps=10,
        eval_every_steps=512,
        save_every_steps=256,
        save_every_s=0.0,  # or about so many seconds, counted in steps; 0 is never by time
        steps_per_dispatch=0,  # of images that lie on the devices; 0: as many as take half a second
        image_store="auto",  # "resident" on the devices, "streamed", or auto: what fits; a CPU streams
        keep_checkpoints=2,
    )
    config.activations = dict(
        site="stage4",
        dtype="float32",
        batch_size=128,
        images_per_shard=512,
        head="",  # of bare activations: an .npz of the linear head behind them (jsae/classifier/head_only.py)
    )
    config.sae = dict(
        variant="topk",
        n_features=512,
        learning_rate=1e-3,
        lr_warmup_steps=100,
        lr_decay_share=0.2,  # of the run, at its end
        ema_decay=0.0,  # 0 keeps no mean of the weights
        frozen="",  # "decoder" and "encoder" are baselines
        n_epochs=30.0,
        batch_size=4096,
        precision="auto",  # of the products: float32 on CPUs, bfloat16 elsewhere; or "default", jax's own
        store="auto",  # "resident" on the devices, "streamed" from disk; auto streams what does not fit
        buffer_mib=1024.0,  # of one of the two windows of a streamed store, over all devices
        dead_after_epochs=1.0,
        steps_per_dispatch=0,  # 0: as many as take half a second
        save_every_s=300.0,  # about; counted in steps, which the first process measures
        save_every_steps=0,
        log_every_steps=20,
        eval_every_steps=200,
        max_bad_steps=10,
        keep_checkpoints=2,
        **variants.defaults(),  # config.sae.topk.k and so on: each variant's settings
    )
    set_k(config, 16)
    config.sweep = dict(  # lists of values for launch.sweep; () is the value above
        variant=(),
        n_features=(),
        k=(),
        l1=(),
        l0=(),
        learning_rate=(),
        seed=(),
    )
    config.planted = dict(  # directions planted into the activations, for launch.planted
        doses=(0.001, 0.003, 0.01, 0.03),  # variance of one, as a share of that of the activations
        m=(1, 4),  # features that may carry one
        n_images=512,  # of train, to choose the features, and of test
        n_epochs=20.0,
        tuned=("relu_l1",),  # variants whose coefficient is chosen on train to have topk.k active features
        variants=dict(  # what a variant takes instead of config.sae's values: about as many active features
            relu_l1=dict(learning_rate=1e-2, relu_l1=dict(l1=3.0, l1_warmup_steps=200)),
            jumprelu=dict(learning_rate=1e-2, jumprelu=dict(l0=1.0, l0_warmup_steps=200, bandwidth=0.5)),
            gated=dict(learning_rate=1e-2, gated=dict(l1=4.0, l1_warmup_steps=200)),
        ),
    )
    config.analysis = dict(
        n_top=16,
        batch_size=128,
        n_permutations=100,
        pixel_maps=dict(  # which pixels a feature depends on (jsae/analysis/pixel_maps)
            n_features=32,  # class-selective ones that are measured
            n_patches=2,  # of each; one takes some 300 forward passes
            method="occlusion",  # or integrated, smooth
        ),
        embedding_workdir="",  # a study of another seed, whose classifier says how alike images are
    )
    config.ablation = dict(
        n_features=32,
        features=(),  # () lets the stage choose
        max_images=48,  # blurred for a feature
        n_mapped_images=8,  # of these, also blurred where the pixel map says; 0 is none
        n_blurred_features=24,  # the first of n_features; a pair takes up to a dozen forward passes
        sigma_px=6.0,
        size_cells=1,
        batch_size=128,
        n_bootstrap=1000,
        n_joint=32,  # features removed together, at most
        n_all_features_images=128,  # where all features take forward passes, not the closed form
        counterfactual=dict(  # of drawn data: indices drawn with and without a part
            n_train=256,  # that features are chosen on
            n_test=256,  # that they are scored on
            n_candidates=64,  # features of a pair that are tried one by one where no closed form is
        ),
        mediation=dict(n_images=256),  # of train, to choose features; of test, to score them
    )
    config.report = dict(
        n_features=1000,  # features with a page of their own; the table has all
        n_images=3000,  # test images whose strongest features are removed one by one; cheap at the final site
        twin="",  # another workdir or SAE folder, to name each feature's match there
    )
    config.runtime = dict(
        deterministic=False,
        data_axis=-1,
        model_axis=1,
        tensorboard=False,  # write the rows of metrics.jsonl for TensorBoard as well
        stuck_after_s=600.0,  # without a step: say which process is behind; 0 never
        compile_cache="",  # a folder that only trusted users can write; "" leaves it to jax
    )
    if form == "small":
        config.data.n_train, config.data.n_val, config.data.n_test = 1024, 64, 320
        config.classifier.stem_stride = 4  # a quarter of the work, and it learns sooner; the grid is 3x3
        config.sae.batch_size, config.sae.n_epochs, config.sae.lr_warmup_steps = 1024, 10.0, 20
        config.ablation.n_features, config.ablation.max_images = 8, 24
        config.ablation.counterfactual.n_train = config.ablation.counterfactual.n_test = 24
        config.report.n_features, config.report.n_images = 8, 64
        config.analysis.pixel_maps.n_features, config.ablation.n_mapped_images = 4, 1
    return config


def set_k(config: ConfigDict, k: int) -> None:
    """Set the active features per vector of every variant that has them as a setting."""
    for section in config.sae.values():
        if isinstance(section, ConfigDict) and "k" in section:
            section.k = k
