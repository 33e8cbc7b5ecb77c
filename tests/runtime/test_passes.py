"""Results of passes come back as they were, are made once, and hold nothing but what was named."""

import dataclasses
import typing

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from jsae.runtime import digests, passes, stages


class Moments(typing.NamedTuple):
    n: np.ndarray
    name: str


@dataclasses.dataclass(frozen=True)
class Effects:
    deltas: np.ndarray
    by_scope: dict
    extra: object = None


def kept_in(folder, kinds):
    return passes.Passes(stages.Stage("ablation", epath.Path(folder), {}, False), kinds)


def effects():
    rng = np.random.default_rng(0)
    deltas = rng.normal(size=(3, 2)).astype(np.float32)
    deltas[1, 1] = np.nan
    by_scope = {"map": Moments(jnp.arange(4), "a|ä"), 7: [np.float64(0.1), (True, None, 1e-300)]}
    return Effects(deltas, by_scope)


def test_a_result_is_made_once_and_read_as_it_was(tmp_path):
    made = []

    def make(number, *, flag):
        made.append((number, flag))
        return effects()

    keep = kept_in(tmp_path, (Effects, Moments))
    for _ in range(2):
        found = keep("pass", make)(3, flag=True)
        np.testing.assert_array_equal(found.deltas, effects().deltas)
        assert found.deltas.dtype == np.float32 and found.extra is None
        assert found.by_scope["map"].n.tolist() == [0, 1, 2, 3] and found.by_scope["map"].name == "a|ä"
        assert found.by_scope[7] == [np.float64(0.1), (True, None, 1e-300)]
    assert made == [(3, True)], "the second time it is read"


def test_what_was_not_named_is_neither_kept_nor_made(tmp_path):
    with pytest.raises(TypeError, match=r"Effects cannot be kept; kinds named are Moments"):
        kept_in(tmp_path, (Moments,))("pass", effects)()
    with pytest.raises(TypeError, match=r"Moments cannot be kept"):
        kept_in(tmp_path, (Effects,))("pass", effects)()
    assert not (tmp_path / "parts").exists()
    kept_in(tmp_path, (Effects, Moments))("pass", effects)()
    with pytest.raises(KeyError):
        kept_in(tmp_path, (Moments,))("pass", effects)()


def test_a_damaged_result_is_named(tmp_path):
    keep = kept_in(tmp_path, (Effects, Moments))
    keep("pass", effects)()
    path = tmp_path / "passes/pass.npz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(digests.Damaged, match=r"passes/pass.npz is damaged"):
        keep("pass", effects)()
