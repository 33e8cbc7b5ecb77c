"""Two SAEs of the same activations compared, for example of two seeds: do they find the same features?

    python -c "from jsae.experiments import stability; print(stability.compare('runs/a', 'runs/b'))"

The numbers are those of `jsae.metrics.stability`, over the features that fire on the train split.
"""

import os

import numpy as np

from jsae import metrics
from jsae.activations import ActivationStore
from jsae.runtime import artifacts, paths, stages
from jsae.sae import evaluate, restore


def compare(workdir: os.PathLike | str, other: os.PathLike | str, *, seed: int = 0) -> dict:
    """Stability of the SAEs of two workdirs, alive features only.

    Args:
      workdir, other: two studies with a finished SAE; their activations should come from one classifier.
      seed: of the random dictionaries beside.

    Returns:
      The keys of `metrics.stability`, and n_alive, a pair.

    Raises:
      stages.StageMissing: a stage is not finished.
      ValueError: the SAEs have different numbers of channels.
    """
    rows = [alive_rows(w) for w in (workdir, other)]
    if rows[0].shape[1] != rows[1].shape[1]:
        raise ValueError(
            f"{workdir} has {rows[0].shape[1]} channels and {other} has {rows[1].shape[1]}; "
            "only SAEs of the same site can be compared"
        )
    return metrics.stability(*rows, seed=seed) | {"n_alive": (len(rows[0]), len(rows[1]))}


def alive_rows(workdir: os.PathLike | str) -> np.ndarray:
    """Decoder rows [F_alive, C] of the workdir's SAE, those of the features that fire on its train split."""
    config = artifacts.read_json(paths.resolve(workdir) / "config.json")
    stages.require(config, workdir, "sae")
    sae = restore.load(stages.folder(config, workdir, "sae"))
    store = ActivationStore.open(stages.folder(config, workdir, "activations") / "train")
    sums = evaluate.over_store(sae, store, n_vectors=4096)
    return np.asarray(sae.w_dec)[np.asarray(sums.sae.fires) > 0]
