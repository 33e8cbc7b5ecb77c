"""Make visaebench_reference.json: what the package's own functions give on `inputs()`.

    python tests/metrics/visaebench_reference.py      (in an environment with torch and visaebench 0.1.0)

Of the package only the four files of its metrics are loaded: its backbones need more than torch. The codes go
in as activations, through an SAE that hands them on; what it "reconstructs" lacks every third channel.
"""

import importlib.util
import json
import pathlib
import sys
import types

import numpy as np

REFERENCE = pathlib.Path(__file__).with_suffix(".json")
GRID, N_FEATURES = (5, 5), 40
GROUPS = ((0, 1, 2), (3, 4, 5), (6, 7))
K_VALUES = (1, 2, 5, 10, 20)


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """(codes [240, 5, 5, 40] float32, labels [240]): maps, smooth or scattered, stronger in some classes.

    Feature 0 is dead, 1 is active in every cell, 2 in 40 images.
    """
    rng = np.random.default_rng(7)
    labels = rng.permutation(np.repeat(np.arange(8), 30))
    rows, columns = np.mgrid[:5, :5]
    centre = rng.uniform(0, 4, (240, N_FEATURES, 2))
    distance = (rows - centre[..., :1, None]) ** 2 + (columns - centre[..., 1:, None]) ** 2
    maps = np.exp(-distance / rng.uniform(0.5, 4, (N_FEATURES, 1, 1)))  # [240, 40, 5, 5]
    scattered = np.arange(N_FEATURES) % 3 == 0
    maps[:, scattered] = rng.random(maps[:, scattered].shape) * (rng.random(maps[:, scattered].shape) < 0.4)
    own = np.where(rng.random((8, N_FEATURES)) < 0.06, 10, 1)  # [classes, features]
    strength = (0.3 + rng.exponential(size=(240, N_FEATURES))) * own[labels]
    codes = np.maximum(strength[..., None, None] * maps - 0.1, 0)
    codes[:, 0], codes[:, 1], codes[40:, 2] = 0, codes[:, 1] + 0.01, 0
    return codes.transpose(0, 2, 3, 1).astype(np.float32), labels


def _package():
    """The metric classes, without what the package imports around them."""
    root = pathlib.Path(importlib.util.find_spec("visaebench").submodule_search_locations[0])
    for name in ("visaebench", "visaebench.metrics"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(root.joinpath(*name.split(".")[1:]))]
    sys.modules["visaebench.data"] = data = types.ModuleType("visaebench.data")
    data.IMAGENET_CLASS_INDEX_PATH = data.WORDNET_PAIRS_PATH = ""
    from visaebench.metrics.concept_detection.sparse_probing import SparseProbing
    from visaebench.metrics.disentanglement.absorption import FeatureAbsorption
    from visaebench.metrics.reconstruction.downstream import DownstreamPreservation
    from visaebench.metrics.spatial_coherence.localization import FeatureLocalization

    return SparseProbing, FeatureAbsorption, DownstreamPreservation, FeatureLocalization


def main() -> None:
    import torch

    class HandOn:
        encode = staticmethod(lambda x: x)
        decode = staticmethod(lambda f: f * (torch.arange(f.shape[-1]) % 3 != 0))

    probing, absorption, preservation, localization = _package()
    codes, labels = inputs()
    given = HandOn(), torch.from_numpy(codes.reshape(len(codes), -1, N_FEATURES))
    groups = {str(i): {"class_indices": list(group)} for i, group in enumerate(GROUPS)}
    settings = {"device": "cpu", "labels": labels}
    found = {
        "sparse_probing": probing(list(K_VALUES)).compute(*given, **settings),
        "absorption": absorption(min_group_size=2).compute(*given, **settings, sibling_groups=groups),
        "preservation": preservation().compute(*given, **settings),
        "morans_i": localization(GRID, max_images_per_feature=1000).compute(*given, device="cpu"),
    }
    kept = {name: {"value": it.value, **it.metadata} for name, it in found.items()}
    for name in ("per_pair_results", "depth_breakdown", "config", "distribution"):
        for numbers in kept.values():
            numbers.pop(name, None)
    REFERENCE.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
