"""The match of each feature in another SAE of the same activations, for example of another seed."""

import numpy as np

from jsae import sae
from jsae.runtime import paths


def matches(folder, w_dec: np.ndarray, features) -> dict[int, tuple[int, float]]:
    """feature -> (the other SAE's feature of largest cosine, that cosine); {} without another SAE.

    Args:
      folder: the other study's workdir, or the folder of an SAE (sweep/<digest>); "" for none.
      w_dec: decoder rows of this SAE [F, C].
      features: those that are looked up.

    Raises:
      FileNotFoundError: there is no finished SAE in the folder.
      ValueError: the two have different numbers of channels.
    """
    if not folder:
        return {}
    other = np.asarray(sae.load(_sae_folder(folder)).w_dec)
    if other.shape[1] != w_dec.shape[1]:
        raise ValueError(
            f"report.twin={folder} has {other.shape[1]} channels, this study's SAE {w_dec.shape[1]}: "
            "only SAEs of the same site can be compared"
        )
    features, theirs = list(features), _unit(other).T
    found = {}
    for start in range(0, len(features), 256):  # a block of rows at a time: F x F may not fit
        block = features[start : start + 256]
        cosines = _unit(w_dec[block]) @ theirs
        for feature, row in zip(block, cosines, strict=True):
            found[feature] = (int(row.argmax()), float(row.max()))
    return found


def check(folder) -> None:
    """Raise FileNotFoundError unless there is an SAE in the folder, or it is ""."""
    if folder and not (_sae_folder(folder) / "model.json").exists():
        raise FileNotFoundError(
            f"config.report.twin={str(folder)!r} holds no trained SAE; give another workdir, or "
            "the folder of an SAE (sweep/<digest>)"
        )


def _sae_folder(folder):
    path = paths.resolve(folder)
    return path / "sae" if (path / "sae").exists() else path


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
