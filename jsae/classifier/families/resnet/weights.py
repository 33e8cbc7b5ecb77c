"""Published ResNet weights: torchvision and timm have the same names; batch norms are folded on reading.

With its scale g, bias b and running mean m and variance v, a batch norm behind a convolution without bias is

    w' = w * g / sqrt(v + eps),     b' = b - m * g / sqrt(v + eps)

in float64, rounded once.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jsae.classifier.families.family import Rule
from jsae.classifier.families.resnet.model import SIZES, ResNet
from jsae.classifier.preprocessing import Preprocessing
from jsae.data.augment import IMAGENET_MEAN, IMAGENET_STD

SOURCES = {"torchvision, timm": "conv1.weight"}
_EPS = 1e-5


def infer(state_dict: Mapping, source: str) -> ResNet:
    """Depths, dims and the kind of block as the tensors have them; the name is that of the size, or "own".

    Raises ValueError if a stage is missing.
    """
    bottleneck = "layer1.0.conv3.weight" in state_dict
    last = "conv3" if bottleneck else "conv2"
    depths, dims = [], []
    for s in range(1, 5):
        weight = state_dict.get(f"layer{s}.0.{last}.weight")
        if weight is None:
            raise ValueError(f"stage {s} is missing: no layer{s}.0.{last}.weight ({source} names)")
        depth = 1
        while f"layer{s}.{depth}.conv1.weight" in state_dict:
            depth += 1
        depths.append(depth)
        dims.append(int(np.shape(weight)[0]))
    fields: dict[str, Any] = {"depths": tuple(depths), "dims": tuple(dims), "bottleneck": bottleneck}
    names = [name for name, size in SIZES.items() if {"bottleneck": False} | size == fields]
    head = state_dict.get("fc.weight")
    return ResNet(name=(names or ["own"])[0], n_classes=1 if head is None else len(head), **fields)


def rules(model: ResNet, source: str) -> list[Rule]:
    """One rule for every convolution with its batch norm, one for the head."""
    del source  # one table for both
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    found = [_folded("conv1", "bn1", ("stem",), shapes["stem"])]
    for s, depth in enumerate(model.depths, start=1):
        for j in range(depth):
            module, prefix = f"stage{s}_block{j}", f"layer{s}.{j}"
            for name, leaves in shapes[module].items():
                conv, norm = f"{prefix}.{name}", f"{prefix}.{name.replace('conv', 'bn')}"
                if name == "downsample":
                    conv, norm = f"{prefix}.downsample.0", f"{prefix}.downsample.1"
                found.append(_folded(conv, norm, (module, name), leaves))
    n_in, n_out = shapes["head"]["kernel"].shape
    head = Rule(
        {"fc.weight": ((n_out, n_in),), "fc.bias": ((n_out,),)},
        lambda weight, bias: {("head", "kernel"): weight.T, ("head", "bias"): bias},
        is_head=True,
    )
    return [*found, head]


def _folded(conv: str, norm: str, path: tuple[str, ...], leaves: Mapping) -> Rule:
    """The rule of one convolution, [O, I, p, p] without bias, and the batch norm behind it."""
    height, width, n_in, n_out = leaves["kernel"].shape

    def make(weight, scale, bias, mean, variance):
        factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + _EPS)
        kernel = weight.transpose(2, 3, 1, 0) * factor[None, None, None, :]
        return {(*path, "kernel"): kernel, (*path, "bias"): bias - mean * factor}

    per_channel = ("weight", "bias", "running_mean", "running_var")
    return Rule(
        {f"{conv}.weight": ((n_out, n_in, height, width),)}
        | {f"{norm}.{name}": ((n_out,),) for name in per_channel},
        make,
        ignored=(f"{norm}.num_batches_tracked",),
    )


def preprocessing(source: str, name: str) -> Preprocessing:
    """How torchvision prepares images for its first weights of these networks."""
    del name
    return Preprocessing(224, 256, "bilinear", IMAGENET_MEAN, IMAGENET_STD, f"the usual one of {source}")


def fold_scaling(variables: Any, a: np.ndarray, b: np.ndarray) -> Any:
    """Variables that take x where the old ones took a * x + b, a and b being [3].

    Raises ValueError unless b is 0: the stem pads with zeros, which another mean would make another colour.
    """
    if np.any(b):
        raise ValueError(
            "weights of a ResNet for images normalised with another mean than ImageNet's cannot be taken: "
            "its stem pads with that mean"
        )
    kernel = np.asarray(variables["stem"]["kernel"], np.float64) * a[None, None, :, None]
    return variables | {"stem": variables["stem"] | {"kernel": kernel.astype(np.float32)}}
