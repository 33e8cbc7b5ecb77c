"""`pytree`: what jit's caches and tree functions need of our dataclasses."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jsae.analysis.strength import KeepMaps, KeepPooled, MeasureStrength
from jsae.analysis.top_patches import KeepTopPatches
from jsae.runtime.pytrees import pytree


@pytree
class Scaled:
    x: jax.Array
    factor: int = dataclasses.field(default=2, metadata={"static": True})

    def __post_init__(self):
        jnp.shape(self.x)  # placeholders of tree functions have none


@pytest.mark.parametrize("one, other", [(KeepMaps(), KeepPooled()), (MeasureStrength(4), KeepTopPatches(4))])
def test_two_classes_with_the_same_fields_are_two_structures(one, other):
    assert jax.tree.structure(one) != jax.tree.structure(other)


def test_what_is_compiled_for_one_class_never_runs_for_another():
    @jax.jit
    def number(x):
        return jnp.asarray(x.number)

    for i in range(60):  # with register_dataclass about one in six is answered by another class
        kind = pytree(type(f"Kind{i}", (), {"number": i}))
        assert int(number(kind())) == i


def test_leaves_and_static_fields():
    x = Scaled(jnp.ones(3), 5)
    assert jax.tree.structure(x) == jax.tree.structure(Scaled(jnp.zeros(3), 5))
    assert jax.tree.structure(x) != jax.tree.structure(Scaled(jnp.zeros(3), 6))
    assert jax.tree.map(lambda leaf: object(), x).factor == 5
    [(path, _)], _ = jax.tree_util.tree_flatten_with_path(x)
    assert jax.tree_util.keystr(path) == ".x"
    with pytest.raises(dataclasses.FrozenInstanceError):
        x.factor = 1
