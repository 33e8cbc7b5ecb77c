"""The trained classifier of a finished stage, restored from its last checkpoint."""

import jax

from jsae.classifier import convnext
from jsae.runtime import artifacts, checkpoints, paths


def load(folder) -> convnext.Params:
    """EMA weights of the last step of a finished classifier stage, on the first local device.

    Args:
      folder: the stage's folder, workdir/classifier.

    Raises:
      FileNotFoundError: the stage was never finished there.
      digests.Damaged: its last checkpoint cannot be read; an older one is not taken.
    """
    folder = paths.resolve(folder)
    arch, abstract, step = _describe(folder)
    with_sharding = checkpoints.abstract(abstract, jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    store = checkpoints.Checkpoints(folder / "checkpoints", read_only=True)
    restored = store.restore({"ema": with_sharding}, step=step)
    if restored is None:
        raise FileNotFoundError(f"{folder / 'checkpoints'} holds no checkpoint")
    store.close()
    return convnext.Params(restored[1]["ema"], arch)


def load_arch(folder) -> convnext.Arch:
    """Architecture of a finished classifier stage. Raises FileNotFoundError as `load` does."""
    return _describe(paths.resolve(folder))[0]


def arch_of(fields: dict) -> convnext.Arch:
    """The architecture that a manifest describes."""
    return convnext.Arch(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def _describe(folder):
    path = folder / "manifest.json"
    manifest = artifacts.read_json(path) if path.exists() else {}
    if manifest.get("status") != "complete":
        raise FileNotFoundError(f"{folder} holds no finished classifier")
    arch = arch_of(manifest["results"]["arch"])
    abstract = jax.eval_shape(lambda key: convnext.init(key, arch), jax.random.key(0)).variables
    return arch, abstract, manifest["results"].get("n_steps")
