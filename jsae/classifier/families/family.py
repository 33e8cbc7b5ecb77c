"""What a family of networks provides: sizes, model, and how published weights become its variables."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jsae.classifier.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class Rule:
    """Some leaves of a network, made from some tensors of a weights file.

    Attributes:
      tensors: name -> the shapes in which a source may have the tensor.
      make: (one float32 array per tensor, in that order) -> {path of a leaf: array in our layout}.
      is_head: these leaves are the linear head, which a fresh one may replace.
      ignored: names beside them that carry no weight, and may be absent.
    """

    tensors: Mapping[str, tuple[tuple[int, ...], ...]]
    make: Callable[..., dict[tuple[str, ...], np.ndarray]]
    is_head: bool = False
    ignored: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of networks.

    Attributes:
      title: as it is published.
      model: makes a `model.Trainable` from its fields, name, n_classes, stem_stride, depths and dims among
        them; a frozen dataclass whose class attribute `family` is the key in FAMILIES.
      sizes: published name -> the fields that belong to it.
      sources: source of weights -> a tensor name that tells it.
      infer: (state dict, source) -> the model that the tensors' shapes tell; n_classes is 1 without a head.
      rules: (model, source) -> one rule for every leaf, each leaf once.
      preprocessing: (source, name of the size) -> how the source prepares images.
      fold_scaling: (variables, a [3], b [3]) -> variables that take x where the old ones took a * x + b.
      hints: part of a tensor's name that is not expected -> what to say about it.
    """

    title: str
    model: Callable[..., Any]
    sizes: Mapping[str, dict]
    sources: Mapping[str, str]
    infer: Callable[[Mapping, str], Any]
    rules: Callable[[Any, str], list[Rule]]
    preprocessing: Callable[[str, str], Preprocessing]
    fold_scaling: Callable[[Any, np.ndarray, np.ndarray], Any]
    hints: Mapping[str, str] = dataclasses.field(default_factory=dict)
