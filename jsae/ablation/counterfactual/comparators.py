"""What an SAE is held against on twins: bases of the channels' space, an SAE with a random decoder, and the
mean change itself.

Bases are signed here, f = (x - mean) . u with F = C, all of them alike: a change of either sign is one
feature's.
"""

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from jsae import sae as saes
from jsae.ablation.counterfactual.drawings import Drawn
from jsae.analysis import dictionaries
from jsae.analysis.directions import unit_rows
from jsae.runtime import mesh as meshes
from jsae.runtime import stages
from jsae.runtime.context import RunContext
from jsae.runtime.paths import PathLike
from jsae.runtime.pytrees import pytree
from jsae.sae import run as sae_run
from jsae.study import Study


@pytree
class Projections:
    """Signed features (x - mean) . w_dec of unit rows.

    Attributes:
      w_dec: [F, C].
      mean: [C], raw units.
    """

    w_dec: jax.Array | np.ndarray
    mean: jax.Array | np.ndarray

    @property
    def n_features(self) -> int:
        """F."""
        return self.w_dec.shape[0]

    def encode(self, x: jax.Array) -> jax.Array:
        """Features [..., F] of raw activations [..., C], of either sign, raw units."""
        centred = x.astype(jnp.float32) - self.mean.reshape((1,) * (x.ndim - 1) + (-1,))
        return jnp.matmul(centred, self.w_dec.T, precision="float32")

    def decode(self, feats: jax.Array) -> jax.Array:
        """Raw activations [..., C] of features [..., F]; the projection of x for an orthonormal w_dec."""
        mean = self.mean.reshape((1,) * (feats.ndim - 1) + (-1,))
        return jnp.matmul(feats, self.w_dec, precision="float32") + mean


def of_study(study: Study) -> dict[str, Any]:
    """sae, rotation, channels and pca of a study, by name; `frozen_decoder` must be trained first.

    Bases are made from the train store: its mean, and about 16,000 of its vectors for pca.
    """
    train = study.activations("train")
    mean, n_channels = np.asarray(train.mean, np.float32), len(train.mean)
    bases = {
        "rotation": dictionaries.rotation(mean, study.config["seed"]),
        "channels": dictionaries.channels(mean),
        "pca": dictionaries.pca(dictionaries.sample(train), mean),
    }
    signed = {name: Projections(basis.w_dec[:n_channels], mean) for name, basis in bases.items()}
    return {"sae": study.sae} | signed


def frozen_decoder(
    config: Any, workdir: PathLike, context: RunContext | None = None, mesh: Mesh | None = None
) -> saes.SAE:
    """The study's SAE trained with a random decoder that stays (arXiv 2602.14111), kept for the next time.

    It lies in WORKDIR/baselines/frozen_decoder, where `jsae.experiments.baselines` looks for it; one that
    was made of other activations or with other settings is made again.

    Args:
      config: of the experiment, with attributes (ConfigDict).
      workdir: of the study, its activations finished.
      context: of the run.
      mesh: to deal the SAE over.
    """
    context = context or RunContext()
    where = epath.Path(workdir) / "baselines" / "frozen_decoder"
    point = copy.deepcopy(config)
    point.sae.frozen = "decoder"
    alive = context.alive  # of the stage that runs this
    context.log.info("counterfactual: an SAE with a frozen decoder, in %s", where)
    try:
        try:
            sae_run.run(point, workdir, context, where=where)
        except stages.ConfigMismatch:
            context.log.info("frozen decoder: made of another study before, trained again")
            meshes.wait_for_all("frozen decoder: compared")
            if meshes.is_writer():
                where.rmtree()
            meshes.wait_for_all("frozen decoder: dropped")
            sae_run.run(point, workdir, context, where=where)
    finally:
        context.alive = alive
    return saes.load(where, mesh)


def supervised(drawn: Drawn, mean: np.ndarray) -> Projections:
    """One direction per pair: the mean of A1 - A0 over drawings and cells, of unit norm, [P, C].

    With a head that is nearly linear it carries the whole mean change: a share of 1 checks the code, and its
    leak says how far the network itself keeps parts apart.
    """
    changes = []
    for pair in drawn.pairs:
        without, with_part = drawn.of(pair)
        change = with_part.acts.mean((0, 1, 2), dtype=np.float64)
        changes.append(change - without.acts.mean((0, 1, 2), dtype=np.float64))
    return Projections(unit_rows(np.stack(changes)), np.asarray(mean, np.float32))
