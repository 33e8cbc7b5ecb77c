"""The match of each feature in another SAE of the same activations, for example of another seed."""

from collections.abc import Iterable

import numpy as np
from etils import epath

from jsae import sae
from jsae.runtime import mesh, paths

_BLOCK = 256  # features compared at a time: F x F cosines may not fit


def matches(folder: str, this: sae.SAE, features: Iterable[int]) -> dict[int, tuple[int, float]]:
    """feature -> (the other SAE's feature of largest cosine, that cosine); {} without another SAE.

    Args:
      folder: the other study's workdir, or the folder of an SAE (sweep/<digest>); "" for none.
      this: the SAE of this study.
      features: those that are looked up.

    Raises:
      FileNotFoundError: there is no finished SAE in the folder.
      ValueError: the two have different numbers of channels.
    """
    if not folder:
        return {}
    w_dec = mesh.collect(this.w_dec)  # [F, C]
    other = np.asarray(sae.load(_sae_folder(folder)).w_dec)
    if other.shape[1] != w_dec.shape[1]:
        raise ValueError(
            f"report.twin={folder} has {other.shape[1]} channels, this study's SAE {w_dec.shape[1]}: "
            "only SAEs of the same site can be compared"
        )
    features, theirs = list(features), _normalised(other).T
    found = {}
    for start in range(0, len(features), _BLOCK):
        block = features[start : start + _BLOCK]
        for feature, row in zip(block, _normalised(w_dec[block]) @ theirs, strict=True):
            found[feature] = (int(row.argmax()), float(row.max()))
    return found


def check(folder: str) -> None:
    """Raise FileNotFoundError unless there is an SAE in the folder, or it is ""."""
    if folder and not (_sae_folder(folder) / "model.json").exists():
        raise FileNotFoundError(
            f"config.report.twin={str(folder)!r} holds no trained SAE; give another workdir, or "
            "the folder of an SAE (sweep/<digest>)"
        )


def _sae_folder(folder: str) -> epath.Path:
    path = paths.resolve(folder)
    return path / "sae" if (path / "sae").exists() else path


def _normalised(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
