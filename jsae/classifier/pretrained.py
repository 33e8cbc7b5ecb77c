"""Published weights as `Params`, by the names that their sources gave the tensors.

    params = pretrained.convert(state_dict)                     # a dict of numpy arrays, torch's shapes
    params, preprocessing = pretrained.load("model.safetensors")

Family and source are told from the names of the stem, and nothing may be missing, left over or of another
shape; how the sources differ stands in the families' weights.py. The network always takes ImageNet-normalised
images: weights trained with another mean and standard deviation get the difference folded into their stem.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from jsae.classifier import preprocessing
from jsae.classifier.families import FAMILIES, Family
from jsae.classifier.model import Params, Trainable
from jsae.data.augment import IMAGENET_MEAN, IMAGENET_STD

_SHOWN = 8


def source_of(state_dict: Mapping) -> tuple[Family, str]:
    """Whose names these are: the family, and one of its sources (timm, torchvision, ...).

    Raises ValueError if the names are of none of them.
    """
    for family in FAMILIES.values():
        for source, stem in family.sources.items():
            if stem in state_dict:
                return family, source
    stems = ", ".join(
        f"{stem} ({source} {family.title})"
        for family in FAMILIES.values()
        for source, stem in family.sources.items()
    )
    raise ValueError(
        f"no network of a known source: expected one of {stems}; the first of {len(state_dict)} names are "
        f"{', '.join(list(state_dict)[:_SHOWN]) or 'none'}"
    )


def convert(state_dict: Mapping, name: str = "", n_classes: int | None = None, *, seed: int = 0) -> Params:
    """Weights of any source of any family.

    Args:
      state_dict: name -> numpy array, with torch's names and shapes.
      name: a size of the family that the tensors must have; "" takes the one that their shapes tell.
      n_classes: None keeps the head; a number replaces it by a fresh one, whatever head is there or not.
      seed: of the fresh head.

    Returns:
      float32 params whose model carries the stem's stride and the source's eps.

    Raises:
      ValueError: unknown source or size; one message with all names that are missing, not expected, or of
        another shape.
    """
    family, source = source_of(state_dict)
    model = family.infer(state_dict, source)
    if name and name not in family.sizes:
        raise ValueError(f"there is no {family.title} {name!r}; the sizes are {', '.join(family.sizes)}")
    model = dataclasses.replace(
        model,
        n_classes=n_classes or model.n_classes,
        **({"name": name} | family.sizes[name] if name else {}),
    )
    leaves = _converted(state_dict, family, source, model, keeps_head=n_classes is None)
    abstract = jax.eval_shape(
        lambda key: model.init(key, layer_scale=1.0, kernels=model.inits[0]), jax.random.key(0)
    )
    if n_classes is not None:
        key, shape = jax.random.key(seed), abstract["head"]["kernel"].shape
        leaves["head", "kernel"] = 0.02 * jax.random.truncated_normal(key, -2.0, 2.0, shape)
        leaves["head", "bias"] = np.zeros(n_classes, np.float32)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.asarray(leaves[tuple(key.key for key in path)], jnp.float32), abstract
    )
    return Params(variables, model)


def _converted(state_dict, family: Family, source: str, model: Any, keeps_head: bool) -> dict:
    """Path -> array of every leaf, but for those of the head where it is replaced."""
    rules = family.rules(model, source)
    used = [rule for rule in rules if keeps_head or not rule.is_head]
    missing = [name for rule in used for name in rule.tensors if name not in state_dict]
    known = {name for rule in rules for name in (*rule.tensors, *rule.ignored)}
    unexpected = [name for name in state_dict if name not in known]
    misshapen = [
        f"{name} {list(np.shape(state_dict[name]))}"
        for rule in used
        for name, shapes in rule.tensors.items()
        if name in state_dict and np.shape(state_dict[name]) not in shapes
    ]
    problems = {"missing": missing, "not expected": unexpected, "of another shape": misshapen}
    found = [
        f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        for what, names in problems.items()
        if names
    ]
    if found:
        hints = [hint for part, hint in family.hints.items() if any(part in name for name in unexpected)]
        raise ValueError(
            f"these are not the weights ({source} names) of a {family.title} {model.name!r}, depths "
            f"{model.depths}, dims {model.dims}: {'; '.join([*found, *hints])}"
        )
    leaves = {}
    for rule in used:
        leaves |= rule.make(*(np.asarray(state_dict[name], np.float32) for name in rule.tensors))
    return leaves


def read_model(path: str | pathlib.Path) -> Trainable | None:
    """The network of a file's weights by its header alone; None where there is no such file.

    Raises ValueError if it is not a safetensors file, or of no known network.
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
        family, source = source_of(shapes)
        return family.infer(shapes, source)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _file(path) -> pathlib.Path:
    path = pathlib.Path(path).expanduser()
    return path / "model.safetensors" if path.is_dir() else path


def load(
    path: str | pathlib.Path, n_classes: int | None = None, *, seed: int = 0
) -> tuple[Params, preprocessing.Preprocessing]:
    """Weights and preprocessing from a .safetensors file, or a folder with model.safetensors.

    The size is read off the tensors. Preprocessing comes from a config.json (timm) or
    preprocessor_config.json (Hugging Face) beside the file, and otherwise is the source's usual one.

    Args:
      path: a local path.
      n_classes, seed: as in `convert`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a safetensors file, or not the weights of a known network.
    """
    path = _file(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a .safetensors file of weights")
    try:
        state_dict = safetensors.numpy.load_file(path)
    except Exception as error:
        raise ValueError(
            f"{path} is not a safetensors file ({error}); .pth and .bin files are pickles: convert them with "
            "safetensors.torch.save_file(state_dict, path) where torch is"
        ) from error
    try:
        family, source = source_of(state_dict)
        params = convert(state_dict, n_classes=n_classes, seed=seed)
        found = preprocessing.read(path.parent, family.preprocessing(source, params.model.name))
        return fold_normalisation(params, found.mean, found.std), found
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def fold_normalisation(params: Params, mean: tuple[float, ...], std: tuple[float, ...]) -> Params:
    """Params for ImageNet-normalised images from params for images normalised with `mean` and `std`.

    With x the image in 0..1, (x - mean) / std = a * (x - m) / s + b for a = s / std, b = (m - mean) / std.
    """
    if tuple(mean) == IMAGENET_MEAN and tuple(std) == IMAGENET_STD:
        return params
    a = np.asarray(IMAGENET_STD) / np.asarray(std)
    b = (np.asarray(IMAGENET_MEAN) - np.asarray(mean)) / np.asarray(std)
    fold = FAMILIES[params.model.family].fold_scaling
    return Params(fold(params.variables, a, b), params.model)
