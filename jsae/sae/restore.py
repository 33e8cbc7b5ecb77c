"""A trained SAE from its stage's folder: model.json says what it is, the last checkpoint holds it."""

import dataclasses

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from jsae.runtime import artifacts, paths, stages
from jsae.sae import model, train, variants


def describe(folder: epath.PathLike, sae: model.SAE, has_ema: bool) -> None:
    """Write folder/model.json: variant, its settings, C, F, and whether a mean of the weights is kept."""
    static = {
        "variant": sae.variant.name,
        "settings": dataclasses.asdict(sae.variant),
        "n_channels": sae.n_channels,
        "n_features": sae.n_features,
        "has_ema": has_ema,
    }
    artifacts.write_json(epath.Path(folder) / "model.json", static, checked=True)


def load(folder: epath.PathLike, mesh: Mesh | None = None) -> model.SAE:
    """The SAE of the last checkpoint; of the mean weights where they are kept.

    Only parameters and constants are read, each device's part by itself; Adam's moments and counters stay on
    disk.

    Args:
      folder: the stage's folder, `<workdir>/sae` or `<workdir>/sweep/<digest>`.
      mesh: deal the SAE over it, F over `model`; None: it lies on the default local device.

    Raises:
      FileNotFoundError: no SAE was trained there.
      ValueError: F cannot be dealt evenly over the mesh's model axis.
      stages.OtherFormat: the stage was made by a revision whose files this one cannot read.
      digests.Damaged: the last checkpoint of a finished stage cannot be read; an older one is not taken.
    """
    from jsae.runtime import checkpoints  # half a second of imports, which a config file need not wait for

    folder = paths.resolve(folder)
    if not (folder / "model.json").exists() or not (folder / "checkpoints").exists():
        raise FileNotFoundError(f"{folder} holds no trained SAE; run launch.train_sae first")
    done = (stages.manifest_in(folder) or {}).get("results", {})
    static = artifacts.read_json(folder / "model.json")
    variant, c = variants.make(static["variant"], **static["settings"]), static["n_channels"]
    sizes = {"n_channels": c, "n_features": static["n_features"], "variant": variant}
    made = jax.eval_shape(lambda: model.init(jax.random.key(0), **sizes, mean=jnp.zeros(c), scale=1.0))
    if mesh is None:
        where = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.local_devices()[0]), made)
    else:
        where = model.shardings(made, mesh)
    made = checkpoints.abstract(made, where)
    wanted = {"sae": made, "ema": made.params if static["has_ema"] else {}}
    saved = checkpoints.Checkpoints(folder / "checkpoints", read_only=True)
    try:
        found = saved.restore(wanted, step=done.get("steps"))
    finally:
        saved.close()
    if found is None:
        raise FileNotFoundError(f"{folder / 'checkpoints'} holds no finished checkpoint")
    sae, ema = found[1]["sae"], found[1]["ema"]
    if ema:
        sae = jax.jit(train.with_mean_weights, out_shardings=where)(sae, ema)
    return dataclasses.replace(sae, mesh=mesh)
