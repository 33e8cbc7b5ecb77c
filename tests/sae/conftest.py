"""Example SAEs, and a finished activations stage made of arrays, so that the stage needs no classifier."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jsae import sae
from jsae.activations import store
from jsae.runtime import artifacts, stages

C, F, K = 12, 40, 5
MEAN, SCALE = np.linspace(-300, 500, C), 37.0  # far from 0 and 1: a forgotten fold shows at once


def make(variant="topk", seed=0, **settings):
    """An SAE whose biases are not zero and whose encoder is not the decoder's transpose."""
    if "k" in sae.variants.settings_of(variant):
        settings = {"k": K} | settings
    if variant == "matryoshka":
        settings = {"prefix_shares": (0.25, 1.0)} | settings
    fresh = sae.init(
        jax.random.key(seed), n_channels=C, n_features=F, variant=variant, mean=MEAN, scale=SCALE, **settings
    )
    rng = np.random.default_rng(seed)
    changed = {
        "w_enc": fresh.w_enc + 0.3 * rng.normal(size=fresh.w_enc.shape),
        "b_enc": 0.1 * rng.normal(size=fresh.b_enc.shape),
        "b_dec": 0.2 * rng.normal(size=fresh.b_dec.shape),
    }
    fields = {name: jnp.asarray(value, jnp.float32) for name, value in changed.items()}
    ranges = {"threshold": (0.05, 1.0), "r_mag": (-0.5, 0.5), "b_mag": (-0.3, 0.3)}
    fields["own"] = {
        name: jnp.asarray(rng.uniform(*ranges[name], size=value.shape), jnp.float32)
        for name, value in fresh.own.items()
    }
    return sae.SAE(**(vars(fresh) | fields))


def activations(shape=(50,), seed=1):
    rng = np.random.default_rng(seed)
    return (MEAN + SCALE * rng.normal(size=(*shape, C))).astype(np.float32)


@pytest.fixture(scope="session")
def examples():
    """Sizes and constants C, F, K, MEAN, SCALE, and make(variant), activations(shape), study helpers."""
    return types.SimpleNamespace(
        **{"C": C, "F": F, "K": K, "MEAN": MEAN, "SCALE": SCALE},
        **{"make": make, "activations": activations},
        **{"make_activations": make_activations, "small_config": small_config, "open_store": open_store},
    )


CHANNELS = 16


def make_activations(config, workdir, *, seed=0, images=(60, 12, 20), grid=(3, 3)):
    """Write stages `classifier` and `activations`: sparse mixtures of 32 directions, mean far from 0."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(32, CHANNELS))
    offset = 50 * rng.normal(size=CHANNELS)
    stages.begin(config, workdir, "classifier").finish({})
    stage = stages.begin(config, workdir, "activations")
    constants = None
    for name, n in zip(("train", "val", "test"), images, strict=True):
        codes = rng.exponential(size=(n, *grid, 32)) * (rng.random((n, *grid, 32)) < 0.1)
        acts = (codes @ directions * 5 + offset).astype(np.float32)
        folder = stage.folder / name
        artifacts.write_array(folder / store.shard_name(0), acts)
        artifacts.write_array(folder / "labels.npy", np.zeros(n, np.int32))
        flat = acts.reshape(-1, CHANNELS).astype(np.float64)
        if constants is None:
            mean = flat.mean(0)
            constants = {
                "mean": mean.tolist(),
                "scale": float(np.sqrt(((flat - mean[None, :]) ** 2).mean())),
            }
        manifest = {"site": "stage4", "grid": list(grid), "n_channels": CHANNELS, "n_images": n}
        manifest |= {"dtype": "float32", "shards": [n], "class_names": ["a"], **constants}
        artifacts.write_json(folder / "manifest.json", manifest)
    stage.finish({"gamma": 1.5})


def small_config():
    """A stage config: 540 train vectors in 64 blocks of 10 rows, 5 steps an epoch, 60 steps."""
    config = ConfigDict()
    config.seed = 0
    config.data = {"kind": "arrays", "seed": 0}
    config.classifier = {"workdir": ""}
    config.activations = {"site": "stage4"}
    config.sae = {
        "variant": "topk",
        "n_features": 64,
        "lr_decay_share": 1.0,
        "ema_decay": 0.0,
        "frozen": "",
        "learning_rate": 3e-3,
        "lr_warmup_steps": 5,
        "n_epochs": 12.0,
        "batch_size": 128,
        "dead_after_epochs": 1.0,
        "steps_per_dispatch": 4,
        "save_every_s": 0.0,
        "save_every_steps": 20,
        "log_every_steps": 5,
        "eval_every_steps": 15,
        "max_bad_steps": 3,
        "keep_checkpoints": 2,
        "precision": "float32",
        "store": "auto",
        "buffer_mib": 64.0,
        **sae.variants.defaults(),
    }
    for variant in ("topk", "batch_topk", "matryoshka"):
        config.sae[variant].k = 4
    config.sae.matryoshka.prefix_shares = (0.25, 1.0)
    config.runtime = {"deterministic": False, "data_axis": -1, "model_axis": 1}
    return config


def open_store(config, workdir, split):
    """The activation store that `make_activations` wrote."""
    return store.ActivationStore.open(stages.folder(config, workdir, "activations") / split)


@pytest.fixture
def study(tmp_path):
    """(config, workdir) with finished activations."""
    config = small_config()
    make_activations(config, tmp_path)
    return config, tmp_path
