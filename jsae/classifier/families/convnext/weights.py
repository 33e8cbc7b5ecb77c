"""Published ConvNeXt weights: one rename table for facebook, timm, torchvision and Hugging Face.

The sources differ in names, in the shape of a few tensors (timm's small sizes keep their MLP as 1x1
convolutions, torchvision its layer scale as [C, 1, 1]) and in the head's eps (Hugging Face: 1e-12).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsae.classifier.families.convnext.model import SIZES, ConvNeXt
from jsae.classifier.families.family import Rule
from jsae.classifier.preprocessing import Preprocessing
from jsae.data.augment import IMAGENET_MEAN, IMAGENET_STD

# Our modules' names by source; {s} is the stage from 0, {t} = 2s, {u} = 2s + 1, {j} the block.
_NAMES = {
    "facebook": {
        "stem": "downsample_layers.0.0",
        "stem_norm": "downsample_layers.0.1",
        "downsample_norm": "downsample_layers.{s}.0",
        "downsample": "downsample_layers.{s}.1",
        "dw": "stages.{s}.{j}.dwconv",
        "norm": "stages.{s}.{j}.norm",
        "expand": "stages.{s}.{j}.pwconv1",
        "project": "stages.{s}.{j}.pwconv2",
        "gamma": "stages.{s}.{j}.gamma",
        "head_norm": "norm",
        "head": "head",
    },
    "timm": {
        "stem": "stem.0",
        "stem_norm": "stem.1",
        "downsample_norm": "stages.{s}.downsample.0",
        "downsample": "stages.{s}.downsample.1",
        "dw": "stages.{s}.blocks.{j}.conv_dw",
        "norm": "stages.{s}.blocks.{j}.norm",
        "expand": "stages.{s}.blocks.{j}.mlp.fc1",
        "project": "stages.{s}.blocks.{j}.mlp.fc2",
        "gamma": "stages.{s}.blocks.{j}.gamma",
        "head_norm": "head.norm",
        "head": "head.fc",
    },
    "torchvision": {
        "stem": "features.0.0",
        "stem_norm": "features.0.1",
        "downsample_norm": "features.{t}.0",
        "downsample": "features.{t}.1",
        "dw": "features.{u}.{j}.block.0",
        "norm": "features.{u}.{j}.block.2",
        "expand": "features.{u}.{j}.block.3",
        "project": "features.{u}.{j}.block.5",
        "gamma": "features.{u}.{j}.layer_scale",
        "head_norm": "classifier.0",
        "head": "classifier.2",
    },
    "huggingface": {
        "stem": "convnext.embeddings.patch_embeddings",
        "stem_norm": "convnext.embeddings.layernorm",
        "downsample_norm": "convnext.encoder.stages.{s}.downsampling_layer.0",
        "downsample": "convnext.encoder.stages.{s}.downsampling_layer.1",
        "dw": "convnext.encoder.stages.{s}.layers.{j}.dwconv",
        "norm": "convnext.encoder.stages.{s}.layers.{j}.layernorm",
        "expand": "convnext.encoder.stages.{s}.layers.{j}.pwconv1",
        "project": "convnext.encoder.stages.{s}.layers.{j}.pwconv2",
        "gamma": "convnext.encoder.stages.{s}.layers.{j}.layer_scale_parameter",
        "head_norm": "convnext.layernorm",
        "head": "classifier",
    },
}
_HEAD_EPS = {"huggingface": 1e-12}  # every other eps of every source is 1e-6
SOURCES = {source: f"{names['stem']}.weight" for source, names in _NAMES.items()}
_TORCHVISION_RESIZE_PX = {"tiny": 236, "small": 230}  # base and large: 232


def infer(state_dict: Mapping, source: str) -> ConvNeXt:
    """Depths, dims and the stem as the tensors have them; the name is that of the size, or "own"."""
    names = _NAMES[source]
    depths, dims = [], []
    for s in range(4):
        numbers = {"s": s, "t": 2 * s, "u": 2 * s + 1}
        depth = 0
        while names["gamma"].format(**numbers, j=depth) in state_dict:
            depth += 1
        kind = "stem" if s == 0 else "downsample"
        weight = state_dict.get(names[kind].format(**numbers) + ".weight")
        if weight is None:
            raise ValueError(f"stage {s + 1} is missing: no {names[kind].format(**numbers)}.weight")
        depths.append(depth)
        dims.append(int(np.shape(weight)[0]))
    sizes: dict[tuple, str] = {(size["depths"], size["dims"]): name for name, size in SIZES.items()}
    head = state_dict.get(f"{names['head']}.weight")
    return ConvNeXt(
        name=sizes.get((tuple(depths), tuple(dims)), "own"),
        depths=tuple(depths),
        dims=tuple(dims),
        n_classes=1 if head is None else len(head),
        stem_stride=int(np.shape(state_dict[SOURCES[source]])[-1]),
        head_eps=_HEAD_EPS.get(source, 1e-6),
    )


def rules(model: ConvNeXt, source: str) -> list[Rule]:
    """One rule for every leaf: each is one tensor of the file in another layout."""
    names = _NAMES[source]
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    found = []
    for keys, leaf in jax.tree_util.tree_flatten_with_path(abstract)[0]:
        path = tuple(key.key for key in keys)
        name = _torch_name(names, path)
        found.append(
            Rule(
                {name: _torch_shapes(model, path, leaf.shape)},
                lambda array, path=path: {path: _ours(path, array)},
                is_head=path[0] == "head",
            )
        )
    return found


def _torch_name(names: dict, path: tuple) -> str:
    """The source's name of one of our leaves, given as a path like ("stage1_block0", "norm", "scale")."""
    module, leaf = path[0], path[-1]
    numbers = {}
    if module.startswith("stage"):
        stage, block = module.removeprefix("stage").split("_block")
        s = int(stage) - 1
        numbers = {"s": s, "t": 2 * s, "u": 2 * s + 1, "j": int(block)}
        if leaf == "gamma":
            return names["gamma"].format(**numbers)
        kind, leaf = leaf.split("_") if leaf.startswith("dw_") else (path[1], leaf)
    elif module.startswith("downsample"):
        s = int(module[len("downsample")]) - 1
        numbers = {"s": s, "t": 2 * s}
        kind = "downsample_norm" if module.endswith("_norm") else "downsample"
    else:
        kind = module
    return f"{names[kind].format(**numbers)}.{'bias' if leaf == 'bias' else 'weight'}"


def _torch_shapes(model: ConvNeXt, path: tuple, shape: tuple) -> tuple[tuple[int, ...], ...]:
    """The shapes that one of our leaves has in the sources."""
    leaf = path[-1]
    if leaf == "gamma":
        return shape, (*shape, 1, 1)
    if leaf == "dw_kernel":
        return ((shape[-1], 1, 7, 7),)
    if leaf != "kernel":
        return (shape,)
    n_in, n_out = shape
    if path[-2] == "conv":
        p = model.stem_stride if path[0] == "stem" else 2
        return ((n_out, n_in // p**2, p, p),)
    return (n_out, n_in), (n_out, n_in, 1, 1)


def _ours(path: tuple, array: np.ndarray) -> np.ndarray:
    """A torch tensor in our layout."""
    if path[-1] == "dw_kernel":  # [C, 1, 7, 7] -> [7, 7, C]
        return array[:, 0].transpose(1, 2, 0)
    if path[-1] != "kernel":
        return array.reshape(-1)
    if array.ndim == 4:  # [O, I, p, p] -> [p * p * I, O]
        return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
    return array.T


def preprocessing(source: str, name: str) -> Preprocessing:
    """How a source prepares images for the size `name`."""
    resize_px, interpolation = 256, "bicubic"
    if source == "torchvision":
        resize_px, interpolation = _TORCHVISION_RESIZE_PX.get(name, 232), "bilinear"
    origin = f"the usual one of {source}"
    return Preprocessing(224, resize_px, interpolation, IMAGENET_MEAN, IMAGENET_STD, origin)


def fold_scaling(variables: Any, a: np.ndarray, b: np.ndarray) -> Any:
    """Variables that take x where the old ones took a * x + b, a, b [3]; exact, as the stem pads nothing."""
    conv = variables["stem"]["conv"]
    kernel = np.asarray(conv["kernel"], np.float64)  # [p * p * 3, C], rows channel-last
    n_pixels = len(kernel) // 3
    folded = {
        "kernel": jnp.asarray(kernel * np.tile(a, n_pixels)[:, None], "float32"),
        "bias": jnp.asarray(conv["bias"] + np.tile(b, n_pixels) @ kernel, "float32"),
    }
    return variables | {"stem": {"conv": folded}}
