"""The training step: one and eight devices, resuming, saving memory, refusing nonsense."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jsae import classifier
from jsae.classifier import train
from jsae.runtime import checkpoints, mesh

ARCH = classifier.make_model("own", 4, stem_stride=2, depths=(0, 1, 0, 1), dims=(4, 8, 8, 16))
DEEP = dataclasses.replace(ARCH, depths=(1, 1, 1, 1))  # where the place of a block matters
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
            lambda: classifier.init(jax.random.key(0), ARCH, layer_scale=0.5),
            out_shardings=mesh.replicated(device_mesh),
        )()

        def gradient(variables, image, label):
            targets, examples = jax.nn.one_hot(label, ARCH.n_classes), jnp.arange(len(label))
            made = classifier.Params(variables, ARCH)
            return train.grads_of(made, image, targets, examples, jax.random.key(1), RECIPE)[1]

        grads.append(mesh.to_host(jax.jit(gradient)(params.variables, put["image"], put["label"])))
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


def second_update(recipe, arch, gradient):
    """What the optimizer adds to fresh weights at step 1 (step 0 has rate 0), each gradient one number."""
    optimizer = train.make_optimizer(recipe, arch)

    def update():
        params = classifier.init(jax.random.key(0), arch).variables
        gradients = jax.tree.map(lambda x: jnp.full_like(x, gradient), params)
        _, opt = optimizer.update(gradients, optimizer.init(params), params)
        return optimizer.update(gradients, opt, params)[0]

    return jax.jit(update)()


def test_only_matrices_and_kernels_decay():
    updates = second_update(RECIPE, ARCH, 0.0)
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
        dataclasses.replace(RECIPE, dtype="float16")
    with pytest.raises(ValueError, match=r"layer_decay=0\.0 must be above 0"):
        dataclasses.replace(RECIPE, layer_decay=0.0)
    with pytest.raises(ValueError, match="micro_batches=0 must be at least 1"):
        dataclasses.replace(RECIPE, micro_batches=0)


def gradient(recipe, params):
    images = jnp.asarray(batch(0)["image"], jnp.float32) / 255
    targets, examples = jax.nn.one_hot(batch(0)["label"], ARCH.n_classes), jnp.arange(16) + 5
    key = jax.random.key(1)
    return jax.jit(lambda p: train.grads_of(p, images, targets, examples, key, recipe))(params)


@pytest.mark.parametrize("change", [{"micro_batches": 4}, {"micro_batches": 16}, {"remat": True}], ids=str)
def test_saving_memory_changes_no_gradient(change):
    params = classifier.init(jax.random.key(0), ARCH, layer_scale=0.5, kernels="fan_in")
    recipe = dataclasses.replace(RECIPE, drop_path=0.5)
    (loss, logits), whole = gradient(recipe, params)
    (loss_in_parts, logits_in_parts), parts = gradient(dataclasses.replace(recipe, **change), params)
    np.testing.assert_allclose(loss_in_parts, loss, rtol=1e-6)
    np.testing.assert_allclose(logits_in_parts, logits, atol=1e-6 * np.abs(logits).max(), rtol=0)
    difference = jax.tree.map(jnp.subtract, parts, whole)
    # of the whole gradient: a leaf whose summands nearly cancel depends on their order in float32
    assert optax.tree.norm(difference) <= 1e-6 * optax.tree.norm(whole)


def test_which_blocks_are_dropped_depends_on_the_example_alone():
    params = jax.jit(lambda: classifier.init(jax.random.key(0), DEEP, layer_scale=0.5, kernels="fan_in"))()
    image = jnp.asarray(batch(0)["image"][:1], jnp.float32) / 255
    examples = jnp.arange(12)
    key = jax.random.key(0)

    @jax.jit
    def run(examples):
        images = jnp.repeat(image, len(examples), 0)
        return DEEP.train_logits(params.variables, images, key, examples, drop_path=0.5)

    logits, turned = np.asarray(run(examples)), np.asarray(run(examples[::-1]))[::-1]
    np.testing.assert_array_equal(logits, turned)
    assert len(np.unique(logits.round(4), axis=0)) > 2


def test_layer_decay_scales_the_update_by_the_distance_from_the_head():
    plain = second_update(RECIPE, DEEP, 1.0)
    decayed = second_update(dataclasses.replace(RECIPE, layer_decay=0.5), DEEP, 1.0)
    distance = {"head": 0, "head_norm": 0, "stage4_block0": 1, "downsample4_norm": 1, "stage3_block0": 2}
    distance |= {"stage2_block0": 3, "downsample2": 4 - 1, "stage1_block0": 4, "stem": 5, "stem_norm": 5}
    for module, blocks in distance.items():
        for a, b in zip(jax.tree.leaves(plain[module]), jax.tree.leaves(decayed[module]), strict=True):
            np.testing.assert_allclose(b, a * 0.5**blocks, rtol=1e-6)


def test_pretrained_weights_are_where_training_starts():
    given = classifier.init(jax.random.key(9), ARCH).variables
    state = train.init_state(jax.random.key(0), ARCH, RECIPE, pretrained=given, images=None)
    for name in ("params", "ema"):
        jax.tree.map(np.testing.assert_array_equal, state[name], given)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_state_and_gradients_are_float32_whatever_the_computation(dtype):
    recipe = dataclasses.replace(RECIPE, dtype=dtype, augmentation={"crop": "resized", "mix": "mixup"})
    state = train.init_state(jax.random.key(3), ARCH, recipe, layer_scale=0.5)
    step = jax.jit(train.make_step(ARCH, recipe, 0))
    after, values = step(state, batch(0))
    assert {leaf.dtype for leaf in jax.tree.leaves((after["params"], after["ema"]))} == {jnp.dtype("float32")}
    assert np.isfinite(values["train/loss"])
    if dtype == "bfloat16":
        text = step.lower(state, batch(0)).as_text()
        assert text.count("bf16") > 100


def test_images_are_mixed_with_their_targets():
    recipe = dataclasses.replace(RECIPE, augmentation={"crop": "none", "flip": False, "mix": "cutmix"})
    images, targets = train.augmented(jax.random.key(0), batch(0), ARCH.n_classes, recipe)
    assert images.shape == (16, 16, 16, 3)
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-5)
    assert (np.asarray(targets) > 0.1).sum(1).max() == 2
