"""An SAE dealt over a mesh: encode and decode by themselves, nothing gathered, restored part by part."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae import sae
from jsae.runtime import checkpoints
from jsae.runtime import mesh as meshes
from jsae.sae import model, restore, train

C, F, K = 16, 2**12, 8
VARIANTS = ("topk", "batch_topk", "jumprelu", "gated", "relu_l1")
MESHES = ((1, 8), (4, 2))


def whole(variant):
    """An SAE on one device, with biases and thresholds that are not zero."""
    k = {"k": K} if "k" in sae.variants.settings_of(variant) else {}
    fresh = sae.init(
        jax.random.key(3), n_channels=C, n_features=F, variant=variant, mean=jnp.arange(C), scale=3.0, **k
    )
    rng = np.random.default_rng(0)
    own = {name: jnp.float32(rng.uniform(0.1, 0.5, value.shape)) for name, value in fresh.own.items()}
    params = fresh.params | {"b_enc": jnp.float32(0.1 * rng.normal(size=F))} | own
    return fresh.with_params(params, own)


def acts():
    return (np.arange(C) + 3 * np.random.default_rng(1).normal(size=(8, 3, 2, C))).astype(np.float32)


@functools.cache
def mesh_of(shape):
    return meshes.make_mesh(*shape)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", MESHES)
def test_features_and_reconstructions_are_those_of_one_device(variant, shape):
    one, x = whole(variant), acts()
    dealt = model.over_mesh(one, mesh_of(shape))
    assert dealt.w_dec.addressable_shards[0].data.shape == (F // shape[1], C)
    feats, x_hat = dealt.encode(x), dealt.decode(one.encode(x))
    assert feats.addressable_shards[0].data.shape == (8 // shape[0], 3, 2, F // shape[1])
    expected = np.asarray(one.encode(x))
    np.testing.assert_allclose(feats, expected, atol=1e-5 * expected.max())
    np.testing.assert_array_equal(np.asarray(feats) != 0, expected != 0)
    np.testing.assert_allclose(x_hat, one.decode(one.encode(x)), rtol=1e-5, atol=1e-4)
    alone = dealt.encode(
        x[0, 0, 0]
    )  # no batch axis, or one that `data` does not divide: every device has all
    np.testing.assert_allclose(alone, expected[0, 0, 0], atol=1e-5 * expected.max())
    assert dealt.encode(x[:3]).addressable_shards[0].data.shape == (3, 3, 2, F // shape[1])


@pytest.mark.parametrize("variant", ("topk", "gated"))
def test_derivatives_of_both_kinds_are_those_of_one_device(variant):
    """Through encode and decode, with respect to the activations and to a factor of every feature."""
    one, x = whole(variant), jnp.asarray(acts())
    dealt = model.over_mesh(one, mesh_of((4, 2)))

    def strength(sae, x, keep):
        return (sae.decode(keep * sae.encode(x)) ** 2).sum()

    keep = jnp.linspace(0.5, 1.0, F)[None, None, None, :]
    for found, expected in zip(
        jax.grad(strength, argnums=(1, 2))(dealt, x, keep),
        jax.grad(strength, argnums=(1, 2))(one, x, keep),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    along = [jax.jvp(lambda keep, s=s: strength(s, x, keep), (keep,), (keep,))[1] for s in (dealt, one)]
    np.testing.assert_allclose(*along, rtol=1e-5)
    masks = jnp.stack([keep, 1 - keep])
    many = jax.vmap(lambda mask: dealt.decode(mask * dealt.encode(x)))(masks)
    np.testing.assert_allclose(many[1], one.decode((1 - keep) * one.encode(x)), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS[:4])
def test_no_device_is_sent_the_dictionary_or_the_features(variant):
    """Of 8 x 6 vectors a device may be sent the candidates of a top_k and reconstructions, nothing larger."""
    dealt, x = model.over_mesh(whole(variant), mesh_of((1, 8))), acts()
    for program in (
        jax.jit(lambda s, x: s.encode(x)).lower(dealt, x).compile(),
        jax.jit(lambda s, f: s.decode(f)).lower(dealt, dealt.encode(x)).compile(),
    ):
        sent = [0]
        for line in program.as_text().splitlines():
            match = re.search(r"= (.*?) (all-gather|all-to-all|collective-permute|all-reduce)", line)
            for shape in re.findall(r"[a-z0-9]+\[([\d,]*)\]", match[1]) if match else ():
                sent.append(int(np.prod([int(n) for n in shape.split(",") if n] or [1])))
        assert max(sent) <= 48 * max(8 * K, C) < 48 * F // 8
        memory = program.memory_analysis()
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes
        assert held < 3 * (F // 8) * C * 4 + 48 * (F // 8) * 4 + 48 * C * 8 + 2**12


@pytest.mark.parametrize("has_ema", [False, True])
def test_a_checkpoint_is_read_without_its_moments_and_dealt_as_it_is_read(tmp_path, monkeypatch, has_ema):
    state = train.empty_state(whole("gated"), has_ema=has_ema)
    restore.describe(tmp_path, state.sae, has_ema=has_ema)
    saved = checkpoints.Checkpoints(tmp_path / "checkpoints")
    saved.save(7, state)
    saved.close()
    read = []
    monkeypatch.setattr(
        checkpoints.Checkpoints,
        "_read",
        lambda self, names, step, read_=checkpoints.Checkpoints._read: (
            read.extend(names) or read_(self, names, step)
        ),
    )
    dealt = sae.load(tmp_path, mesh_of((1, 8)))
    assert not [name for name in read if name.startswith(("adam", "step", "silent", "bad"))]
    assert "sae/w_enc" in read and ("ema/w_enc" in read) == has_ema
    assert dealt.mesh == mesh_of((1, 8))
    for array in (dealt.w_enc, dealt.w_dec, dealt.own["r_mag"]):
        assert array.addressable_shards[0].data.shape[0] == F // 8
    one = sae.load(tmp_path)
    assert one.mesh is None and one.w_dec.devices() == {jax.local_devices()[0]}
    for found in (one, dealt):
        jax.tree.map(
            np.testing.assert_array_equal, jax.tree.leaves(found), jax.tree.leaves(train.trained_sae(state))
        )
    with pytest.raises(ValueError, match="n_features=4096 must be a multiple of the mesh's model axis, 3"):
        sae.load(tmp_path, meshes.make_mesh(1, 3, devices=jax.devices()[:3]))
