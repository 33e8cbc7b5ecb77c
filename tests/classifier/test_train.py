"""The training step: one and eight devices, resuming, refusing nonsense."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae.classifier import convnext, train
from jsae.runtime import checkpoints, mesh

ARCH = convnext.make_arch("own", 4, stem_stride=2, depths=(1, 1, 1, 1), dims=(4, 8, 8, 16))
RECIPE = train.Recipe(
    n_steps=20,
    warmup_steps=2,
    learning_rate=1e-2,
    weight_decay=0.05,
    clip_norm=1.0,
    label_smoothing=0.1,
    drop_path=0.2,
    ema_decay=0.9,
    augmentation={"crop": "pad", "pad_px": 2, "flip": True},
)


def batch(step, n=16):
    rng = np.random.default_rng(step)
    return {
        "image": rng.integers(0, 256, (n, 16, 16, 3), np.uint8),
        "label": rng.integers(0, 4, n).astype(np.int32),
        "index": np.arange(n, dtype=np.int32),
    }


def jitted_step(device_mesh):
    everywhere, dealt = mesh.replicated(device_mesh), mesh.sharded(device_mesh)
    return jax.jit(
        train.make_step(ARCH, RECIPE, seed=3),
        in_shardings=(everywhere, dealt),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )


def fresh_state(device_mesh):
    make = jax.jit(
        lambda: train.init_state(jax.random.key(3), ARCH, RECIPE, layer_scale=0.5),
        out_shardings=mesh.replicated(device_mesh),
    )
    return make()


def test_gradients_on_one_and_eight_devices():
    images = batch(0)["image"].astype(np.float32) / 255
    labels = batch(0)["label"]
    grads = []
    for n_devices in (1, 8):
        device_mesh = mesh.make_mesh(devices=jax.devices()[:n_devices])
        put = mesh.put_batch(device_mesh, {"image": images, "label": labels})
        params = jax.jit(
            lambda: convnext.init(jax.random.key(0), ARCH, layer_scale=0.5),
            out_shardings=mesh.replicated(device_mesh),
        )()

        def loss(variables, image, label):
            return train.loss_of(convnext.Params(variables, ARCH), image, label, jax.random.key(1), RECIPE)[0]

        grads.append(mesh.to_host(jax.jit(jax.grad(loss))(params.variables, put["image"], put["label"])))
    for one, eight in zip(*map(jax.tree.leaves, grads), strict=True):
        # the batch is summed in another order; the project's bound for a change of topology
        assert np.abs(one - eight).max() <= 1e-5 * np.abs(one).max()


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path):
    device_mesh = mesh.make_mesh(devices=jax.devices()[:2])
    everywhere = mesh.replicated(device_mesh)
    step_fn = jitted_step(device_mesh)
    state = fresh_state(device_mesh)
    saved = checkpoints.Checkpoints(tmp_path)
    for step in range(1, 7):
        state, _ = step_fn(state, mesh.put_batch(device_mesh, batch(step)))
        if step == 3:
            saved.save(step, state)
            saved.wait()
    start, resumed = saved.restore(checkpoints.abstract(jax.eval_shape(lambda: state), everywhere))
    saved.close()
    assert start == 3
    for step in range(4, 7):
        resumed, _ = step_fn(resumed, mesh.put_batch(device_mesh, batch(step)))
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_the_average_of_the_weights_follows_its_definition():
    device_mesh = mesh.make_mesh(devices=jax.devices()[:1])
    step_fn, state = jitted_step(device_mesh), fresh_state(device_mesh)
    average = np.asarray(state["params"]["head"]["kernel"], np.float64)
    for step in range(1, 5):
        state, _ = step_fn(state, mesh.put_batch(device_mesh, batch(step)))
        t = step - 1
        decay = min(RECIPE.ema_decay, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * np.asarray(state["params"]["head"]["kernel"], np.float64)
    # four float32 roundings
    np.testing.assert_allclose(state["ema"]["head"]["kernel"], average, rtol=1e-5, atol=1e-7)


def test_only_matrices_and_kernels_decay():
    params = convnext.init(jax.random.key(0), ARCH).variables
    optimizer = train.make_optimizer(RECIPE)
    opt = optimizer.init(params)
    zero = jax.tree.map(jnp.zeros_like, params)
    _, opt = optimizer.update(zero, opt, params)  # step 0 has rate 0
    updates, _ = optimizer.update(zero, opt, params)
    for path, update in jax.tree_util.tree_flatten_with_path(updates)[0]:
        name = jax.tree_util.keystr(path)
        decayed = bool(np.any(np.asarray(update)))
        assert decayed == ("kernel" in name), name


def test_training_lowers_the_loss():
    device_mesh = mesh.make_mesh(devices=jax.devices()[:1])
    step_fn, state = jitted_step(device_mesh), fresh_state(device_mesh)
    fixed = batch(0)
    losses = []
    for _ in range(RECIPE.n_steps):
        state, values = step_fn(state, mesh.put_batch(device_mesh, fixed))
        losses.append(float(values["train/loss"]))
    assert losses[-1] < losses[0] - 0.1  # 16 images, 20 steps


def test_recipe_refuses_an_unknown_dtype():
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        train.Recipe(**{**vars(RECIPE), "dtype": "float16"})
