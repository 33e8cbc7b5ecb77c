"""Frozen dataclasses as pytrees, for everything that is handed to a jitted function.

`jax.tree_util.register_dataclass` would do, but jaxlib 0.10 compares the structures of two such classes
without their types: classes with as many leaves and equal static fields are equal keys of jit's caches. Only
some bits of their hashes tell them apart, and now and then a call runs what was compiled for another class.
"""

import dataclasses
from typing import TypeVar, dataclass_transform

import jax

_Class = TypeVar("_Class")


@dataclass_transform(frozen_default=True)
def pytree(cls: type[_Class]) -> type[_Class]:
    """The class as a frozen dataclass and a pytree; fields with metadata={"static": True} are no leaves."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    leaves = tuple(field.name for field in fields if not field.metadata.get("static"))
    static = tuple(field.name for field in fields if field.metadata.get("static"))
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in leaves)

    def flatten(x):
        return tuple(getattr(x, name) for name in leaves), tuple(getattr(x, name) for name in static)

    def flatten_with_keys(x):
        values, kept = flatten(x)
        return tuple(zip(keys, values, strict=True)), kept

    def unflatten(kept, values):
        x = object.__new__(cls)  # as JAX asks: leaves may be placeholders, which __post_init__ would refuse
        for name, value in zip(leaves + static, (*values, *kept), strict=True):
            object.__setattr__(x, name, value)
        return x

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
