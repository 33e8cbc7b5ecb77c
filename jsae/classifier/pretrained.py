"""Published ConvNeXt weights as `Params`: one rename table for facebook, timm, torchvision and Hugging Face.

    params = pretrained.convert(state_dict, "tiny")             # a dict of numpy arrays, torch's shapes
    params, preprocessing = pretrained.load("model.safetensors")

The source is told from the names of the stem, and nothing may be missing or left over. The networks differ
in names, in the shape of a few tensors (timm's small sizes keep their MLP as 1x1 convolutions, torchvision
its layer scale as [C, 1, 1]) and in the head's eps (Hugging Face: 1e-12); all of that ends here, and the
`Params` carry their eps. They always take ImageNet-normalised images: weights trained with another mean and
standard deviation get the difference folded into their stem, which is exact because the stem pads nothing.
"""

import dataclasses
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from jsae.classifier import convnext, preprocessing
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
_SHOWN = 8


def source_of(state_dict: Mapping) -> str:
    """Whose names these are: facebook, timm, torchvision or huggingface.

    Raises ValueError if the names are of none of them.
    """
    for source, names in _NAMES.items():
        if f"{names['stem']}.weight" in state_dict:
            return source
    stems = ", ".join(f"{names['stem']}.weight ({source})" for source, names in _NAMES.items())
    raise ValueError(
        f"no ConvNeXt of a known source: expected one of {stems}; the first of {len(state_dict)} names are "
        f"{', '.join(list(state_dict)[:_SHOWN]) or 'none'}"
    )


def convert(state_dict: Mapping, arch, n_classes: int | None = None, *, seed: int = 0) -> convnext.Params:
    """Weights of any of the four sources.

    Args:
      state_dict: name -> numpy array, with torch's names and shapes.
      arch: a size name (`convnext.SIZES`), or a `convnext.Arch` of which depths and dims count.
      n_classes: None keeps the head; a number replaces it by a fresh one, whatever head is there or not.
      seed: of the fresh head.

    Returns:
      float32 params whose arch carries the stem's stride and the source's eps.

    Raises:
      ValueError: unknown source or size; one message with all names that are missing, not expected, or of
        another shape.
    """
    source = source_of(state_dict)
    names = _NAMES[source]
    stem = np.asarray(state_dict[f"{names['stem']}.weight"])
    if isinstance(arch, str):
        arch = convnext.make_arch(arch, 1)
    head = state_dict.get(f"{names['head']}.weight")
    keeps_head = n_classes is None
    n_outputs = n_classes or (1 if head is None else len(head))
    arch = dataclasses.replace(
        arch,
        n_classes=n_outputs,
        stem_stride=int(stem.shape[-1]),
        head_eps=_HEAD_EPS.get(source, arch.eps),
    )
    abstract = jax.eval_shape(lambda key: convnext.init(key, arch), jax.random.key(0)).variables
    shapes = {
        tuple(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_flatten_with_path(abstract)[0]
    }
    wanted = {path: _torch_name(names, path) for path in shapes if keeps_head or path[0] != "head"}
    ignored = set() if keeps_head else {f"{names['head']}.{leaf}" for leaf in ("weight", "bias")}
    missing = [name for name in wanted.values() if name not in state_dict]
    unexpected = [name for name in state_dict if name not in ignored.union(wanted.values())]
    arrays, misshapen = {}, []
    for path, name in wanted.items():
        if name in state_dict:
            torch_array = np.asarray(state_dict[name], np.float32)
            arrays[path] = _ours(path, torch_array)
            if arrays[path] is None or arrays[path].shape != shapes[path]:
                misshapen.append(f"{name} {list(torch_array.shape)}")
    _raise_if(source, arch, missing, unexpected, misshapen)

    if not keeps_head:
        key, shape = jax.random.key(seed), shapes["head", "kernel"]
        arrays["head", "kernel"] = 0.02 * jax.random.truncated_normal(key, -2.0, 2.0, shape)
        arrays["head", "bias"] = np.zeros(n_outputs, np.float32)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.asarray(arrays[tuple(key.key for key in path)]), abstract
    )
    return convnext.Params(variables, arch)


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


def _ours(path: tuple, array: np.ndarray):
    """A torch tensor in our layout, or None if it has a number of axes that no source uses there."""
    leaf = path[-1]
    if leaf in ("bias", "dw_bias", "scale", "gamma"):
        return array.reshape(-1)
    if leaf == "dw_kernel":  # [C, 1, 7, 7] -> [7, 7, C]
        return array[:, 0].transpose(1, 2, 0) if array.ndim == 4 else None
    if array.ndim == 4:  # [O, I, p, p] -> [p * p * I, O]
        return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
    return array.T if array.ndim == 2 else None


def _raise_if(source, arch, missing, unexpected, misshapen):
    problems = {"missing": missing, "not expected": unexpected, "of another shape": misshapen}
    found = [
        f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        for what, names in problems.items()
        if names
    ]
    if found:
        hint = "; ConvNeXt V2 (grn) is another network" if any("grn" in name for name in unexpected) else ""
        raise ValueError(
            f"these are not the weights ({source} names) of a ConvNeXt {arch.name!r}, depths {arch.depths}, "
            f"dims {arch.dims}: {'; '.join(found)}{hint}"
        )


def infer_arch(state_dict: Mapping) -> convnext.Arch:
    """Depths and dims as the tensors have them; the name is that of the size they belong to, or "own"."""
    names = _NAMES[source_of(state_dict)]
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
    sizes = {size: name for name, size in convnext.SIZES.items()}
    name = sizes.get((tuple(depths), tuple(dims)), "own")
    return convnext.make_arch(name, 1, depths=tuple(depths), dims=tuple(dims))


def read_arch(path) -> convnext.Arch | None:
    """The architecture of a file's weights by its header alone; None where there is no such file.

    Raises ValueError if it is not a safetensors file, or not of a ConvNeXt.
    """
    path = _file(path)
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            shapes = {name: np.empty(file.get_slice(name).get_shape(), np.bool_) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise ValueError(f"{path} is not a safetensors file ({error})") from error
    try:
        return infer_arch(shapes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _file(path) -> pathlib.Path:
    path = pathlib.Path(path).expanduser()
    return path / "model.safetensors" if path.is_dir() else path


def load(
    path, n_classes: int | None = None, *, seed: int = 0
) -> tuple[convnext.Params, preprocessing.Preprocessing]:
    """Weights and preprocessing from a .safetensors file, or a folder with model.safetensors.

    The size is read off the tensors. Preprocessing comes from a config.json (timm) or
    preprocessor_config.json (Hugging Face) beside the file, and otherwise is the source's usual one.

    Args:
      path: a local path.
      n_classes, seed: as in `convert`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a safetensors file, or not the weights of a ConvNeXt.
    """
    path = _file(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a .safetensors file of ConvNeXt weights")
    try:
        state_dict = safetensors.numpy.load_file(path)
    except Exception as error:
        raise ValueError(
            f"{path} is not a safetensors file ({error}); .pth and .bin files are pickles: convert them with "
            "safetensors.torch.save_file(state_dict, path) where torch is"
        ) from error
    try:
        source, arch = source_of(state_dict), infer_arch(state_dict)
        params = convert(state_dict, arch, n_classes, seed=seed)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    found = preprocessing.read(path.parent, source, params.arch.name)
    return fold_normalisation(params, found.mean, found.std), found


def fold_normalisation(params: convnext.Params, mean, std) -> convnext.Params:
    """Params for ImageNet-normalised images from params for images normalised with `mean` and `std`.

    With x the image in 0..1, (x - mean) / std = a * (x - m) / s + b for a = s / std, b = (m - mean) / std.
    """
    if tuple(mean) == IMAGENET_MEAN and tuple(std) == IMAGENET_STD:
        return params
    a = np.asarray(IMAGENET_STD) / np.asarray(std)
    b = (np.asarray(IMAGENET_MEAN) - np.asarray(mean)) / np.asarray(std)
    conv = params.variables["stem"]["conv"]
    kernel = np.asarray(conv["kernel"], np.float64)  # [p * p * 3, C], rows channel-last
    n_pixels = len(kernel) // 3
    folded = {
        "kernel": jnp.asarray(kernel * np.tile(a, n_pixels)[:, None], "float32"),
        "bias": jnp.asarray(conv["bias"] + np.tile(b, n_pixels) @ kernel, "float32"),
    }
    variables = params.variables | {"stem": {"conv": folded}}
    return convnext.Params(variables, params.arch)
