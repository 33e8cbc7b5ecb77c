"""The network families, one folder each, and the dictionary that names them.

    convnext   ConvNeXt (arXiv 2201.03545): atto to large
    resnet     ResNet (arXiv 1512.03385): resnet18, resnet34, resnet50

A new family is one folder with a `family.Family` and one entry here; nothing outside this folder knows one.
"""

import dataclasses
from collections.abc import Sequence

from jsae.classifier.families import convnext, resnet
from jsae.classifier.families.family import Family
from jsae.classifier.model import Trainable

FAMILIES: dict[str, Family] = {
    "convnext": convnext.FAMILY,
    "resnet": resnet.FAMILY,
}
_DEFAULT = "convnext"  # of names that say no family, and of manifests that were written before there were two


def family_of(name: str) -> str:
    """The family of a network's name: that of a size, or the one whose key begins it, or ConvNeXt."""
    sizes = [key for key, family in FAMILIES.items() if name in family.sizes]
    return (sizes or [key for key in FAMILIES if name.startswith(key)] or [_DEFAULT])[0]


def make_model(
    name: str, n_classes: int, *, stem_stride: int = 4, depths: Sequence[int] = (), dims: Sequence[int] = ()
) -> Trainable:
    """A network by size name, or with depths and dims of its own under any name.

    A name of the latter kind that begins with a family's key is of that family, any other a ConvNeXt.

    Raises ValueError for an unknown name without depths and dims, with the names of all families.
    """
    if bool(depths) != bool(dims):
        raise ValueError(f"depths and dims go together, got depths={tuple(depths)} and dims={tuple(dims)}")
    family = FAMILIES[family_of(name)]
    fields = {"depths": tuple(depths), "dims": tuple(dims)} if depths else family.sizes.get(name)
    if fields is None:
        names = "; ".join(f"{', '.join(each.sizes)} ({each.title})" for each in FAMILIES.values())
        raise ValueError(f"there is no network {name!r}; the sizes are {names}; or give depths and dims")
    return family.model(name=name, n_classes=n_classes, stem_stride=stem_stride, **fields)


def describe(model: Trainable) -> dict:
    """The network as a manifest keeps it: its family and its fields."""
    return {"family": model.family} | dataclasses.asdict(model)


def model_of(fields: dict) -> Trainable:
    """The network that a manifest describes."""
    family = FAMILIES[fields.get("family", _DEFAULT)]
    fields = {key: value for key, value in fields.items() if key != "family"}
    return family.model(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
