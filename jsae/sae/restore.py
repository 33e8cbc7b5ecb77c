"""A trained SAE from its stage's folder: model.json says what it is, the last checkpoint holds it."""

import jax
import jax.numpy as jnp
from etils import epath

from jsae.runtime import artifacts, checkpoints, paths, stages
from jsae.sae import model, train


def describe(folder, sae: model.SAE, has_ema: bool) -> None:
    """Write folder/model.json: variant, n_channels, n_features, k, and whether a mean of weights is kept."""
    static = {name: getattr(sae, name) for name in ("variant", "n_channels", "n_features", "k")}
    artifacts.write_json(epath.Path(folder) / "model.json", static | {"has_ema": has_ema}, checked=True)


def load(folder) -> model.SAE:
    """The SAE of the last checkpoint, on the default local device; of the mean weights where they are kept.

    Args:
      folder: the stage's folder, `<workdir>/sae` or `<workdir>/sweep/<digest>`.

    Raises:
      FileNotFoundError: no SAE was trained there.
      digests.Damaged: the last checkpoint of a finished stage cannot be read; an older one is not taken.
    """
    folder = paths.resolve(folder)
    if not (folder / "model.json").exists() or not (folder / "checkpoints").exists():
        raise FileNotFoundError(f"{folder} holds no trained SAE; run launch.train_sae first")
    static = artifacts.read_json(folder / "model.json")
    has_ema = static.pop("has_ema", False)
    zeros = jnp.zeros(static["n_channels"])

    def fresh():
        sae = model.init(jax.random.key(0), **static, mean=zeros, scale=1.0)
        return train.empty_state(sae, has_ema=has_ema)

    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    saved = checkpoints.Checkpoints(folder / "checkpoints", read_only=True)
    try:
        done = (stages.manifest_in(folder) or {}).get("results", {})
        found = saved.restore(checkpoints.abstract(jax.eval_shape(fresh), here), step=done.get("steps"))
    finally:
        saved.close()
    if found is None:
        raise FileNotFoundError(f"{folder / 'checkpoints'} holds no finished checkpoint")
    return train.trained_sae(found[1])
