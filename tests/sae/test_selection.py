"""Selection without a sort: each form equals `lax.top_k`, kernels interpreted; nothing lowered has a sort."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jsae.runtime import mesh as meshes
from jsae.sae import model, train, variants
from jsae.sae.variants import selection, topk
from tests.sae import test_sharded

WHOLE = variants.WHOLE
FORMS = {
    "counting": selection.by_counting,
    "triton": functools.partial(selection.by_triton, interpret=True),
    "mosaic": functools.partial(selection.by_mosaic, interpret=True),
}


def rows(f):
    """Rows [11, F], no multiple of a kernel's block: ties, few or no positive entries, NaN, infinities."""
    rng = np.random.default_rng(f)
    pre = np.round(rng.normal(size=(11, f)), 1).astype(np.float32)  # many ties
    pre[1] = rng.normal(size=f)
    pre[2] = 0.5
    pre[3] = -np.abs(pre[3])
    pre[4, 3:] = -np.inf  # not dead, in AuxK
    pre[5, ::3] = np.inf
    pre[6] = np.where(np.arange(f) % 2, 1e-30, 2e-30)
    pre[7, f // 2] = np.nan
    pre[8, 0] = -np.nan
    pre[9] = -0.0
    return pre


def kept(pre, found):
    """`topk.keep_top` with this cut."""
    threshold, last = map(np.asarray, found)
    dropped = (pre < threshold) | ((pre == threshold) & (np.arange(pre.shape[1])[None, :] > last))
    return np.where(dropped, 0.0, np.maximum(pre, 0.0))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("f, k", [(40, 5), (129, 64), (5, 5), (1, 1)])
def test_every_form_selects_what_top_k_selects(form, f, k):
    pre = rows(f)
    expected, found = (kept(pre, cut(pre, k, WHOLE)) for cut in (selection.by_sorting, FORMS[form]))
    assert ((found > 0).sum(1)[:7] <= k).all() and np.isnan(found[7:9]).any(1).all()
    exact = np.arange(len(pre)) != 8  # top_k has a NaN with a sign last: its row keeps k, ours all
    np.testing.assert_array_equal(found[exact], expected[exact])


def test_features_dealt_over_devices_are_counted_together():
    """Of 40 features on 8 devices; rows with a NaN are left out: their shards without it keep less."""
    pre, k = rows(40)[[0, 1, 2, 3, 4, 5, 6, 9, 10]], 7
    mesh, shard = meshes.make_mesh(1, 8), variants.Shard(model="model", n_model=8)
    spec = PartitionSpec(None, "model")

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    def found(pre):
        return jnp.concatenate([a.astype(jnp.float32) for a in selection.by_counting(pre, k, shard)], axis=1)

    threshold, last = np.asarray(jax.jit(found)(pre)).reshape(len(pre), 8, 2).transpose(2, 0, 1)
    parts = np.split(pre, 8, axis=1)
    dealt = [kept(part, (threshold[:, [i]], last[:, [i]])) for i, part in enumerate(parts)]
    expected = kept(pre, selection.by_sorting(pre, k, WHOLE))
    np.testing.assert_array_equal(np.concatenate(dealt, axis=1), expected)


def test_the_cut_of_a_batch_is_the_same_with_wide_digits(monkeypatch):
    """The form of accelerators, three bits a pass, against the one of CPUs."""
    values = np.maximum(rows(129)[[0, 1, 2, 4, 6, 7]], 0)
    for n_keep in (1, 70, 300, 2000):
        monkeypatch.undo()
        expected = jax.jit(lambda v, n: selection.cut_of_all(v, n))(values, n_keep)
        monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, cpu, default: default(*args))
        assert jax.jit(lambda v, n: selection.cut_of_all(v, n))(values, n_keep) == expected


SORTS = re.compile(r"stablehlo\.(sort|scatter)|chlo\.top_k|mhlo\.topk")


def lowered(f, platform, *args):
    return jax.jit(f).trace(*args).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
@pytest.mark.parametrize("platform, target", [("cuda", "triton"), ("tpu", "tpu_custom_call"), ("rocm", None)])
def test_a_device_by_itself_takes_a_kernel_and_all_else_counts(platform, target):
    pre, one = jax.ShapeDtypeStruct((16, 300), jnp.float32), variants.Shard(kernels=True)
    alone, any_, wide = (
        lowered(lambda pre, s=shard: topk.keep_top(pre, 9, s), platform, a)
        for shard, a in ((one, pre), (WHOLE, pre), (one, jax.ShapeDtypeStruct((16, 1 << 17), jnp.float32)))
    )
    assert not any(SORTS.search(text) for text in (alone, any_, wide))
    assert target is None or target in alone
    assert "custom_call" not in any_ + wide
    assert "top_k" in lowered(lambda pre: topk.keep_top(pre, 9), "cpu", pre)
    sae_ = model.over_mesh(test_sharded.host_state("topk").sae, test_sharded.mesh_of(1, 1))
    encode = lowered(lambda x: sae_.encode(x), platform, jnp.zeros((4, test_sharded.C)))
    assert target is None or target in encode


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("variant", ["topk", "matryoshka"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 4)])
def test_a_step_has_no_sort_and_no_scatter_on_accelerators(platform, variant, shape):
    """With AuxK: nothing for XLA to turn into a loop over rows where results must be the same."""
    mesh, host = test_sharded.mesh_of(*shape), test_sharded.host_state(variant)
    step = train.make_step(mesh, host.sae, test_sharded.recipe_of(variant), sparse=False)
    batch = test_sharded.batch_on(mesh)
    text = lowered(step, platform, host, batch)
    assert not SORTS.search(text)
    assert shape != (1, 1) or variant != "topk" or "custom_call" in text
