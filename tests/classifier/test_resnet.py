"""ResNet: parity with torchvision and timm, strict names, sites and edits, and a run of the stage."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import jsae.classifier.run as stage
from configs import demo
from jsae import classifier, edits, sae
from jsae.activations import ActivationStore
from jsae.activations import run as activations_stage
from jsae.classifier import families, pretrained
from jsae.classifier.families.resnet.network import Conv
from jsae.data import augment, identity
from jsae.runtime import artifacts
from tests.classifier.resnet_weights import IMAGE_SHAPES, make_image, make_tensor

REFERENCE = np.load(pathlib.Path(__file__).parent / "resnet_reference.npz")
TENSORS = json.loads(str(REFERENCE["described"]))["tensors"]
BOUND = 2e-5  # of the largest logit, as for ConvNeXt
TOY = classifier.make_model("resnet_toy", 4, stem_stride=2, depths=(1, 2, 1, 1), dims=(8, 8, 12, 16))
BOTTLENECK = dataclasses.replace(TOY, dims=(8, 16, 16, 16), bottleneck=True)


def state_dict_of(name):
    return {name: make_tensor(name, shape) for name, shape in TENSORS[name].items()}


@functools.cache
def forward():
    def run(params, images):
        with jax.default_matmul_precision("float32"):
            return classifier.apply(params, images)

    return jax.jit(run)


def largest_difference(name, shape, params) -> float:
    """Largest |ours - torch's| / max |torch's|, over the logits, mean and first cell of every stage."""
    logits, acts = forward()(params, make_image(*shape))
    prefix = f"{name}/{shape[0]}x{shape[1]}"
    pairs = [(logits[0], REFERENCE[f"{prefix}/logits"])]
    for s in range(1, 5):
        found = np.asarray(acts[f"stage{s}"][0])
        pairs.append((np.stack([found.mean((0, 1)), found[0, 0]]), REFERENCE[f"{prefix}/stage{s}"]))
    return max(float(np.abs(ours - theirs).max() / np.abs(theirs).max()) for ours, theirs in pairs)


@pytest.mark.parametrize("shape", IMAGE_SHAPES, ids=str)
@pytest.mark.parametrize("name", sorted(TENSORS))
def test_logits_and_stages_equal_those_of_the_torch_network(name, shape):
    params = pretrained.convert(state_dict_of(name), name.split("/")[1])
    assert largest_difference(name, shape, params) <= BOUND


def test_the_bound_would_catch_a_wrong_eps(monkeypatch):
    monkeypatch.setattr("jsae.classifier.families.resnet.weights._EPS", 1e-3)
    params = pretrained.convert(state_dict_of("timm/resnet18"))
    assert largest_difference("timm/resnet18", IMAGE_SHAPES[0], params) > BOUND


def test_the_size_is_read_off_the_tensors(tmp_path):
    for name in ("resnet18", "resnet34", "resnet50"):
        safetensors.numpy.save_file(state_dict_of(f"timm/{name}"), tmp_path / "model.safetensors")
        params, found = pretrained.load(tmp_path)
        assert params.model == classifier.make_model(name, 20) == pretrained.read_model(tmp_path)
        assert (found.image_size, found.resize_px, found.interpolation) == (224, 256, "bilinear")


def test_every_tensor_is_used_once_and_wrong_ones_are_named():
    weights = state_dict_of("torchvision/resnet18")
    model = classifier.make_model("resnet18", 20)
    used = [name for rule in families.FAMILIES["resnet"].rules(model, "") for name in rule.tensors]
    counters = [name for name in weights if name.endswith("num_batches_tracked")]
    assert sorted([*used, *counters]) == sorted(weights)
    del weights["layer2.0.downsample.1.running_var"], weights[counters[0]]
    weights["layer1.0.se.fc.weight"] = np.zeros(1)
    weights["bn1.bias"] = np.zeros(3)
    with pytest.raises(ValueError) as error:
        pretrained.convert(weights, "resnet18")
    for part in (
        "of a ResNet 'resnet18', depths (2, 2, 2, 2)",
        "1 missing: layer2.0.downsample.1.running_var",
        "1 not expected: layer1.0.se.fc.weight",
        "1 of another shape: bn1.bias [3]",
    ):
        assert part in str(error.value)
    with pytest.raises(ValueError, match=r"'resnet34'.*missing: layer1\.2"):
        pretrained.convert(state_dict_of("torchvision/resnet18"), "resnet34")
    with pytest.raises(ValueError, match="there is no ResNet 'atto'; the sizes are resnet18"):
        pretrained.convert(state_dict_of("torchvision/resnet18"), "atto")


def test_another_std_is_folded_and_another_mean_refused():
    params = pretrained.convert(state_dict_of("timm/resnet18"), n_classes=3)
    image, mean = make_image(33, 40), pretrained.IMAGENET_MEAN
    std = tuple(2 * s for s in pretrained.IMAGENET_STD)
    folded = pretrained.fold_normalisation(params, mean, std)
    expected = forward()(params, image / 2)[0]
    np.testing.assert_allclose(forward()(folded, image)[0], expected, atol=BOUND * np.abs(expected).max())
    with pytest.raises(ValueError, match="another mean than ImageNet's cannot be taken"):
        pretrained.fold_normalisation(params, (0.5, 0.5, 0.5), std)


@pytest.fixture(scope="module", params=[TOY, BOTTLENECK], ids=["basic", "bottleneck"])
def params(request):
    def make():  # biases off 0, so that each of them matters
        made = classifier.init(jax.random.key(0), request.param, layer_scale=0.5)
        return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), made)

    return jax.jit(make)()


IMAGES = jax.random.normal(jax.random.key(1), (3, 31, 40, 3))


def run(params, images, edits=None, start=None):
    return jax.jit(classifier.apply, static_argnames="start")(params, images, edits=edits, start=start)


def test_sites_have_the_shapes_that_the_model_states(params):
    _, acts = run(params, IMAGES)
    model = params.model
    assert set(acts) == set(model.sites)
    assert model.sites[:4] == ("stem", "stage1.block0", "stage1", "stage2.block0")
    for site, found in acts.items():
        assert found.shape == (3, *model.grid(site, (31, 40)), model.channels(site)), site
    assert [model.stride_px(site) for site in ("stem", "stage1", "stage4")] == [2, 2, 16]


def test_start_from_each_site_equals_the_whole_pass(params):
    logits, acts = run(params, IMAGES)
    for site in params.model.sites:
        again, later = run(params, acts[site], start=site)
        # another program for the same numbers: XLA fuses differently, which moves the last bits
        np.testing.assert_allclose(again, logits, rtol=0, atol=1e-5 * np.abs(logits).max())
        assert set(later) == set(params.model.sites[params.model.sites.index(site) :])


def test_identity_edits_are_bit_identical_and_others_reach_the_logits(params):
    logits, _ = run(params, IMAGES)
    identity_edits = {site: lambda acts: acts for site in params.model.sites}
    same, _ = jax.jit(lambda p, x: classifier.apply(p, x, edits=identity_edits))(params, IMAGES)
    np.testing.assert_array_equal(logits, same)
    for site in ("stem", "stage2.block1", "stage4"):
        edit = {site: lambda acts: acts + 1}
        other, _ = jax.jit(lambda p, x, edit=edit: classifier.apply(p, x, edits=edit))(params, IMAGES)
        assert np.abs(other - logits).max() > 1e-3, site


def test_the_linear_head_is_that_of_the_network(params):
    logits, acts = run(params, IMAGES)
    head = params.model.linear_head(params.variables)
    found = classifier.head_logits(head, acts[params.model.sites[-1]].mean((1, 2)))
    assert head.norm is None
    np.testing.assert_allclose(found, logits, atol=1e-5 * float(np.abs(logits).max()))  # float32


def test_fresh_weights_are_he_normal_and_the_last_convolution_of_a_block_is_scaled():
    wide = dataclasses.replace(TOY, dims=(64, 64, 64, 64))
    made = jax.jit(lambda: wide.init(jax.random.key(0), layer_scale=0.1))()
    first, last = (made["stage2_block1"][name]["kernel"] for name in ("conv1", "conv2"))
    assert abs(float(first.std()) / (2 / (9 * 64)) ** 0.5 - 1) < 0.02  # 36,864 draws
    assert abs(float(last.std()) / float(first.std()) - 0.1) < 0.002
    with pytest.raises(ValueError, match="a ResNet has no 'normal' kernels; valid are fan_in"):
        wide.init(jax.random.key(0), kernels="normal")


def test_calibration_standardises_every_convolution_but_the_last_of_a_block(params):
    model = params.model

    @jax.jit
    def measure(images):
        calibrated = model.calibrate_norms(model.init(jax.random.key(0), layer_scale=0.5), images)
        found = {}

        def record(call, args, kwargs, context):
            y = call(*args, **kwargs)
            if isinstance(context.module, Conv):
                found[context.module.path] = y.mean((0, 1, 2)), y.std((0, 1, 2))
            return y

        with families.resnet.model.nn.intercept_methods(record):
            model(calibrated, images)
        return {"/".join(path): value for path, value in found.items()}

    last = "conv3" if model.bottleneck else "conv2"
    for path, (mean, std) in measure(IMAGES).items():
        if path.endswith(last):
            assert np.abs(std - 1).max() > 0.1, path
        else:
            assert np.abs(mean).max() < 1e-3 and np.all(np.asarray(std) <= 1 + 1e-3), path
            assert np.median(std) > 0.9, path


def test_remat_and_drop_path_in_training(params):
    examples, key = np.arange(3), jax.random.key(0)

    def loss(variables, drop_path, remat):
        logits = params.model.train_logits(variables, IMAGES, key, examples, drop_path=drop_path, remat=remat)
        return jnp.square(logits).sum(), logits

    grad = jax.jit(jax.grad(loss, has_aux=True), static_argnums=(1, 2))
    plain, logits = grad(params.variables, 0.5, False)
    again, _ = grad(params.variables, 0.5, True)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * largest)  # another order of float32 sums
    full = run(params, IMAGES)[0]
    assert np.abs(logits - full).max() > 1e-3
    undropped = grad(params.variables, 0.0, False)[1]
    np.testing.assert_allclose(undropped, full, rtol=0, atol=1e-5 * np.abs(full).max())


def test_layers_are_counted_from_the_head():
    modules = ("head", "stage4_block0", "stage3_block0", "stage2_block1", "stage1_block0", "stem")
    assert [TOY.depth_from_head(module) for module in modules] == [0, 1, 2, 3, 5, 6]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: classifier.make_model("resnet19", 3), r"no network 'resnet19'.*atto.*resnet18, resnet34"),
        (
            lambda: classifier.make_model("resnet_x", 3, depths=(1, 0, 1, 1), dims=(4, 4, 4, 4)),
            "depths of a ResNet are four numbers of at least 1",
        ),
        (lambda: classifier.make_model("resnet18", 3, stem_stride=8), "stem_stride of a ResNet is 1, 2 or 4"),
        (lambda: dataclasses.replace(BOTTLENECK, dims=(6, 8, 8, 8)), "multiples of 4"),
        (lambda: TOY.check_site("stage5"), "no site 'stage5'; the sites are stem, stage1.block0"),
    ],
)
def test_errors_name_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def make_config():
    config = demo.get_config("small")
    config.data.update({"image_size": 32, "n_train": 48, "n_val": 16, "n_test": 16})
    config.classifier.update(
        {
            **{"arch": "resnet_toy", "depths": (1, 1, 1, 1), "dims": (8, 8, 8, 16), "stem_stride": 2},
            **{"batch_size": 16, "n_epochs": 2.0, "warmup_epochs": 0.0, "layer_decay": 0.9},
            **{"drop_path": 0.1, "remat": True, "eval_every_steps": 0, "save_every_steps": 0},
        }
    )
    config.activations.update({"site": "stage4", "batch_size": 16, "images_per_shard": 16})
    return config


def test_a_drawn_study_trains_extracts_and_is_edited(tmp_path):
    config = make_config()
    stage.check_config(config)
    stage.run(config, tmp_path)
    activations_stage.run(config, tmp_path)
    kept = artifacts.read_json(tmp_path / "classifier" / "manifest.json")["results"]["arch"]
    assert kept["family"] == "resnet"
    params = classifier.load(tmp_path / "classifier")
    assert params.model == classifier.load_model(tmp_path / "classifier")
    store = ActivationStore.open(tmp_path / "activations" / "test")
    split = identity.splits_of(config, tmp_path)["test"]
    images = augment.normalise(split.images)
    logits, acts = run(params, images)
    largest = float(np.abs(logits).max())
    np.testing.assert_allclose(store.read(0, 16), acts["stage4"], atol=1e-5 * float(acts["stage4"].max()))
    again, _ = run(params, jnp.asarray(store.read(0, 16)), start="stage4")
    np.testing.assert_allclose(again, logits, atol=1e-5 * largest)
    model = sae.init(
        jax.random.key(0), n_channels=16, n_features=32, variant="topk", k=4, mean=jnp.zeros(16), scale=1.0
    )
    empty, _ = run(params, images, {"stage4": edits.suppress(model, [])})
    np.testing.assert_array_equal(empty, logits)
    without, _ = run(params, images, {"stage4": edits.suppress(model, np.arange(32))})
    removed = model.encode(acts["stage4"]).mean((1, 2)) @ model.w_dec
    head = params.model.linear_head(params.variables)
    expected = classifier.head_logits(head, acts["stage4"].mean((1, 2)) - removed)
    assert np.abs(without - logits).max() > 1e-3 * largest
    np.testing.assert_allclose(without, expected, atol=1e-4 * largest)
