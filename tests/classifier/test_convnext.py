"""Sites, edits and continuing from a site, against independent oracles."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae import classifier
from jsae.classifier import layer_norm as norms
from jsae.classifier.families import layers
from jsae.classifier.families.convnext import gelu, network
from jsae.classifier.layer_norm import layer_norm

ARCH = classifier.make_model("own", 5, stem_stride=2, depths=(1, 2, 1, 1), dims=(4, 8, 12, 16))


@pytest.fixture(scope="module")
def params():
    def make():  # biases and scales off their initial values, so that each of them matters
        made = classifier.init(jax.random.key(0), ARCH, layer_scale=0.5)
        return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), made)

    return jax.jit(make)()


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (3, 32, 32, 3))


def run(params, images, edits=None, start=None):
    return jax.jit(classifier.apply, static_argnames="start")(params, images, edits=edits, start=start)


def naive_forward(params, images):
    """The network written out with numpy in float64, one image and position at a time where it matters."""
    v = jax.tree.map(lambda x: np.asarray(x, np.float64), params.variables)

    def norm(x, p, eps=1e-6):
        mean = x.mean(-1, keepdims=True)
        return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + eps) * p["scale"] + p["bias"]

    def patchify(x, p, stride):
        h, w = x.shape[0] // stride, x.shape[1] // stride
        out = np.zeros((h, w, p["conv"]["bias"].size))
        for i in range(h):
            for j in range(w):
                patch = x[i * stride : (i + 1) * stride, j * stride : (j + 1) * stride]
                out[i, j] = patch.reshape(-1) @ p["conv"]["kernel"] + p["conv"]["bias"]
        return out

    erf = np.vectorize(__import__("math").erf)

    def block(x, p):
        padded = np.pad(x, ((3, 3), (3, 3), (0, 0)))
        y = np.zeros_like(x)
        for i in range(x.shape[0]):
            for j in range(x.shape[1]):
                y[i, j] = (padded[i : i + 7, j : j + 7] * p["dw_kernel"]).sum((0, 1)) + p["dw_bias"]
        y = norm(y, p["norm"]) @ p["expand"]["kernel"] + p["expand"]["bias"]
        y = (0.5 * y * (1 + erf(y / np.sqrt(2)))) @ p["project"]["kernel"] + p["project"]["bias"]
        return x + y * p["gamma"]

    logits = []
    for image in np.asarray(images, np.float64):
        x = norm(patchify(image, v["stem"], ARCH.stem_stride), v["stem_norm"])
        for s, depth in enumerate(ARCH.depths, start=1):
            if s > 1:
                x = patchify(norm(x, v[f"downsample{s}_norm"]), v[f"downsample{s}"], 2)
            for j in range(depth):
                x = block(x, v[f"stage{s}_block{j}"])
        logits.append(norm(x.mean((0, 1)), v["head_norm"]) @ v["head"]["kernel"] + v["head"]["bias"])
    return np.stack(logits)


def test_equals_the_naive_network(params, images):
    logits, _ = run(params, images)
    naive = naive_forward(params, images)
    # float32 against float64: the parity bound of the project, relative to the largest logit
    assert np.abs(logits - naive).max() <= 2e-5 * np.abs(naive).max()


@pytest.mark.parametrize("shape", [(3, 4, 4, 8), (5, 6)])
def test_written_out_gradients_equal_autodiff(shape):
    """Layer norm and GELU bring their own backward passes; the oracle is autodiff of the plain formulas."""
    keys = jax.random.split(jax.random.key(0), 4)
    x, cotangent = 3 + jax.random.normal(keys[0], shape), jax.random.normal(keys[1], shape)
    scale, bias = jax.random.normal(keys[2], shape[-1:]), jax.random.normal(keys[3], shape[-1:])
    lift = (None,) * (len(shape) - 1)

    def plain_norm(x, scale, bias):
        centred = x - x.mean(-1, keepdims=True)
        return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * scale[lift] + bias[lift]

    for ours, plain, arguments in (
        (lambda *a: layer_norm(*a, 1e-6), plain_norm, (x, scale, bias)),
        (gelu.gelu, lambda x: jax.nn.gelu(x, approximate=False), (x - 3,)),
    ):
        value, vjp = jax.vjp(ours, *arguments)
        expected, expected_vjp = jax.vjp(plain, *arguments)
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
        for grad, other in zip(vjp(cotangent), expected_vjp(cotangent), strict=True):
            # float32 with other roundings on the way
            np.testing.assert_allclose(grad, other, rtol=0, atol=3e-6 * np.abs(other).max())


@pytest.mark.parametrize("level, outlier", [(0, 0), (300, 0), (0, 60)])
def test_the_layer_norm_of_accelerators_has_the_gradients_of_the_cpus(level, outlier):
    """Its sums are relative to each row's first value, which may lie far from the others."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, grad = jax.random.normal(keys[0], (3, 4, 4, 96)), jax.random.normal(keys[1], (3, 4, 4, 96))
    x, scale = (x + level).at[..., 0].add(outlier), jax.random.normal(keys[2], (96,))
    _, saved = norms._forward(x, scale, jnp.zeros(96), 1e-6)
    fast = jax.jit(norms._gradients_in_two_passes, static_argnames="eps")(*saved, grad, eps=1e-6)
    for ours, other in zip(fast, norms._gradients(*saved, grad), strict=True):
        # C roundings each of a square and of a mean's square where the first value is the whole variance
        bound = 2 * 96 * 6e-8 if outlier else 3e-6 + 3 * level * 6e-8  # and that of the mean
        np.testing.assert_allclose(ours, other, rtol=0, atol=bound * np.abs(other).max())


def test_biases_and_scales_have_float32_gradients_in_bfloat16():
    """1,000 rows of gradient 1 add up to 1,000, which bfloat16 sums do not reach."""
    x = jnp.ones((1000, 1, 1, 8), jnp.bfloat16)

    def gradients(module, *more):
        variables = module.init(jax.random.key(0), x, *more)["params"]
        return jax.grad(lambda v: module.apply({"params": v}, x, *more).astype(jnp.float32).sum())(variables)

    np.testing.assert_array_equal(gradients(layers.Affine(8))["bias"], 1000)
    np.testing.assert_array_equal(gradients(network.LayerNorm(1e-6))["bias"], 1000)
    np.testing.assert_array_equal(gradients(network.Block(1e-6, 0.0), None)["project"]["bias"], 1000)


def test_sites_are_named_in_order_with_their_shapes(params, images):
    _, acts = run(params, images)
    assert ARCH.sites == (
        *("stem", "stage1.block0", "stage1", "stage2.block0", "stage2.block1", "stage2"),
        *("stage3.block0", "stage3", "stage4.block0", "stage4"),
    )
    assert set(acts) == set(ARCH.sites)
    for site in ARCH.sites:
        cells = 32 // ARCH.stride_px(site)
        assert acts[site].shape[:3] == (3, cells, cells), site


@pytest.mark.parametrize("site", ARCH.sites)
def test_start_from_a_site_equals_the_whole_pass(params, images, site):
    logits, acts = run(params, images)
    again, later = run(params, acts[site], start=site)
    # another program for the same numbers: XLA fuses differently, which moves the last bits
    np.testing.assert_allclose(again, logits, rtol=0, atol=1e-5 * np.abs(logits).max())
    assert list(ARCH.sites[ARCH.sites.index(site) :]) == [s for s in ARCH.sites if s in later]


def test_identity_edits_are_bit_identical(params, images):
    logits, _ = run(params, images)
    edited, _ = jax.jit(
        lambda p, x: classifier.apply(p, x, edits={site: lambda acts: acts for site in ARCH.sites})
    )(params, images)
    np.testing.assert_array_equal(logits, edited)


def test_edits_equal_intercepted_methods(params, images):
    """flax's own interceptor patches the same modules from outside."""

    def double(acts):
        return 2 * acts + 1

    edits = {"stem": double, "stage2.block1": double, "stage4": double}
    ours, _ = jax.jit(lambda p, x: classifier.apply(p, x, edits=edits))(params, images)
    patched = {"stem_norm", "stage2_block1", "stage4_block0"}

    def interceptor(next_fun, args, kwargs, context):
        out = next_fun(*args, **kwargs)
        return double(out) if context.module.name in patched and context.method_name == "__call__" else out

    def intercepted(p, x):
        with nn.intercept_methods(interceptor):
            return classifier.apply(p, x)[0]

    theirs = jax.jit(intercepted)(params, images)
    # the interceptor makes another program of the same numbers: XLA fuses it differently
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
    assert np.abs(ours - run(params, images)[0]).max() > 1e-2


def test_an_edit_reaches_the_returned_activations(params, images):
    _, acts = jax.jit(lambda p, x: classifier.apply(p, x, edits={"stage3": jnp.zeros_like}))(params, images)
    assert not np.any(acts["stage3"]) and np.any(acts["stage2"])


def test_stochastic_depth_is_a_mean_of_the_full_network(params, images):
    examples = np.arange(3)

    def train_logits(key, drop_path):
        return ARCH.train_logits(params.variables, images, key, examples, drop_path=drop_path)

    full = jax.jit(lambda key: train_logits(key, 0.0))(jax.random.key(0))
    np.testing.assert_allclose(full, run(params, images)[0], rtol=0, atol=1e-5 * np.abs(full).max())
    dropped = jax.jit(lambda key: train_logits(key, 0.9))
    assert np.any(np.asarray(dropped(jax.random.key(0))) != np.asarray(dropped(jax.random.key(1))))


def test_calibrated_norms_standardise_every_channel(images):
    def look(images):
        fresh = classifier.init(jax.random.key(0), ARCH, layer_scale=0.5, kernels="fan_in")
        calibrated = classifier.Params(ARCH.calibrate_norms(fresh.variables, images), ARCH)
        seen = {}

        def record(call, args, kwargs, context):
            y = call(*args, **kwargs)
            if isinstance(context.module, network.LayerNorm):
                seen["/".join(context.module.path)] = y
            return y

        with nn.intercept_methods(record):
            classifier.apply(calibrated, images)
        return fresh, calibrated, seen

    fresh, calibrated, seen = jax.jit(look)(images)
    assert len(seen) == 1 + sum(ARCH.depths) + 3 + 1
    for path, y in seen.items():
        axes = tuple(range(y.ndim - 1))
        assert np.abs(y.mean(axes)).max() < 1e-3, path
        assert np.all(np.asarray(y.std(axes)) <= 1 + 1e-3), path  # below 1 where a channel hardly varies
        assert np.median(y.std(axes)) > 0.9, path
    same = jax.tree.map(lambda a, b: bool(np.all(a == b)), fresh.variables, calibrated.variables)
    assert same["stem"]["conv"]["kernel"] and not same["stem_norm"]["scale"]


def test_sizes_that_are_no_multiple_of_the_stride(params):
    logits, acts = run(params, jnp.ones((2, 37, 51, 3)))
    assert logits.shape == (2, 5)
    assert acts["stem"].shape[1:3] == (18, 25) and acts["stage4"].shape[1:3] == (2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p, x: classifier.apply(p, x, edits={"stage5": lambda a: a}),
            "no site 'stage5'.*stage1",
        ),
        (lambda p, x: classifier.apply(p, x, start="stage1.block9"), "no site 'stage1.block9'"),
        (
            lambda p, x: classifier.apply(p, jnp.ones((1, 2, 2, 16)), start="stage4", edits={"stem": abs}),
            "stem lie before",
        ),
        (lambda p, x: classifier.apply(p, x[..., :2]), r"images are \[B, H, W, 3\], got \[3, 32, 32, 2\]"),
        (lambda p, x: classifier.apply(p, x, start="stage4"), r"activations of 'stage4' are \[B, H, W, 16\]"),
        (lambda p, x: jax.eval_shape(classifier.apply, p, x[:, :8, :8]), "smaller than a patch"),
        (lambda p, x: classifier.make_model("atom", 3), "no network 'atom'; the sizes are atto"),
        (lambda p, x: classifier.make_model("own", 3, depths=(1, 1, 1)), "depths and dims go together"),
        (
            lambda p, x: classifier.make_model("own", 3, depths=(1, 1, 1), dims=(1, 2, 3)),
            "depths of a ConvNeXt are four numbers",
        ),
    ],
)
def test_errors_name_what_is_wrong(params, images, call, message):
    with pytest.raises(ValueError, match=message):
        call(params, images)


def test_tiny_has_the_published_number_of_parameters():
    shapes = jax.eval_shape(
        lambda k: classifier.init(k, classifier.make_model("tiny", 1000)), jax.random.key(0)
    )
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 28_589_128
