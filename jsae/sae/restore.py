"""A trained SAE from its stage's folder: model.json says what it is, the last checkpoint holds it."""

import jax
import jax.numpy as jnp
from etils import epath

from jsae.runtime import artifacts, checkpoints
from jsae.sae import model, train


def describe(folder, sae: model.SAE) -> None:
    """Write folder/model.json: variant, n_channels, n_features and k."""
    static = {name: getattr(sae, name) for name in ("variant", "n_channels", "n_features", "k")}
    artifacts.write_json(epath.Path(folder) / "model.json", static)


def load(folder) -> model.SAE:
    """The SAE of the last checkpoint, on the default local device.

    Args:
      folder: the stage's folder, `<workdir>/sae` or `<workdir>/sweep/<digest>`.

    Raises:
      FileNotFoundError: no SAE was trained there.
    """
    folder = epath.Path(folder)
    if not (folder / "model.json").exists() or not (folder / "checkpoints").exists():
        raise FileNotFoundError(f"{folder} holds no trained SAE; run launch.train_sae first")
    static = artifacts.read_json(folder / "model.json")
    zeros = jnp.zeros(static["n_channels"])

    def fresh():
        sae = model.init(jax.random.key(0), **static, mean=zeros, scale=1.0)
        return train.init_state(sae, train.Recipe(n_steps=1, learning_rate=1.0))

    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    saved = checkpoints.Checkpoints(folder / "checkpoints")
    try:
        found = saved.restore(checkpoints.abstract(jax.eval_shape(fresh), here))
    finally:
        saved.close()
    if found is None:
        raise FileNotFoundError(f"{folder / 'checkpoints'} holds no finished checkpoint")
    return found[1].sae
