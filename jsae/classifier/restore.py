"""The trained classifier of a finished stage, restored from its last checkpoint."""

import os

import jax

from jsae.classifier import families
from jsae.classifier.model import Params, Trainable, init
from jsae.runtime import artifacts, checkpoints, paths


def load(folder: str | os.PathLike) -> Params:
    """EMA weights of the last step of a finished classifier stage, on the first local device.

    Args:
      folder: the stage's folder, workdir/classifier.

    Raises:
      FileNotFoundError: the stage was never finished there.
      digests.Damaged: its last checkpoint cannot be read; an older one is not taken.
    """
    folder = paths.resolve(folder)
    model, abstract, step = _describe(folder)
    with_sharding = checkpoints.abstract(abstract, jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    store = checkpoints.Checkpoints(folder / "checkpoints", read_only=True)
    restored = store.restore({"ema": with_sharding}, step=step)
    if restored is None:
        raise FileNotFoundError(f"{folder / 'checkpoints'} holds no checkpoint")
    store.close()
    return Params(restored[1]["ema"], model)


def load_model(folder: str | os.PathLike) -> Trainable:
    """The network of a finished classifier stage. Raises FileNotFoundError as `load` does."""
    return _describe(paths.resolve(folder))[0]


def _describe(folder):
    path = folder / "manifest.json"
    manifest = artifacts.read_json(path) if path.exists() else {}
    if manifest.get("status") != "complete":
        raise FileNotFoundError(f"{folder} holds no finished classifier")
    model = families.model_of(manifest["results"]["arch"])
    abstract = jax.eval_shape(lambda key: init(key, model), jax.random.key(0)).variables
    return model, abstract, manifest["results"].get("n_steps")
