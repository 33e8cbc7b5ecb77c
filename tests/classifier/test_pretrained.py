"""Published weights: the logits of the torch networks, strict names, preprocessing."""

import dataclasses
import functools
import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from jsae import classifier
from jsae.classifier import preprocessing, pretrained
from jsae.classifier.families import FAMILIES
from jsae.classifier.families.convnext import network
from tests.classifier.pretrained_weights import IMAGE_SHAPES, make_image, make_tensor

REFERENCE = json.loads((pathlib.Path(__file__).parent / "pretrained_reference.json").read_text())
# Of the largest logit. The four torch networks differ among themselves by less; a wrong eps or GELU by more.
BOUND = 2e-5


def find(source, size="atto"):
    return next(r for r in REFERENCE["references"] if (r["source"], r["size"]) == (source, size))


def state_dict_of(source, size="atto"):
    return {name: make_tensor(name, shape) for name, shape in find(source, size)["tensors"].items()}


@functools.cache
def forward():
    def run(params, images):
        with jax.default_matmul_precision("float32"):
            return classifier.apply(params, images)[0]

    return jax.jit(run)


def difference(params, source, size, shape, run=None):
    """max |ours - torch's| / max |torch's|."""
    expected = np.asarray(find(source, size)["logits"][f"{shape[0]}x{shape[1]}"])
    logits = (run or forward())(params, make_image(*shape))[0]
    return np.abs(logits - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("shape", IMAGE_SHAPES, ids=str)
@pytest.mark.parametrize("source", ["facebook", "timm", "torchvision", "huggingface"])
def test_logits_equal_those_of_the_torch_network(source, shape):
    params = pretrained.convert(state_dict_of(source), "atto")
    assert difference(params, source, "atto", shape) <= BOUND


def test_logits_of_a_larger_network_equal_those_of_the_torch_network():
    params = pretrained.convert(state_dict_of("torchvision", "tiny"), "tiny")
    assert difference(params, "torchvision", "tiny", (225, 230)) <= BOUND


def test_the_bound_would_catch_a_wrong_eps():
    params = pretrained.convert(state_dict_of("timm"), "atto")
    wrong = classifier.Params(params.variables, dataclasses.replace(params.model, eps=1e-12, head_eps=1e-12))
    assert difference(wrong, "timm", "atto", (224, 224)) > BOUND


def test_the_bound_would_catch_the_tanh_form_of_gelu(monkeypatch):
    monkeypatch.setattr(network, "gelu", jax.nn.gelu)
    params = pretrained.convert(state_dict_of("timm"), "atto")
    run = jax.jit(lambda params, images: classifier.apply(params, images)[0])  # its own trace
    assert difference(params, "timm", "atto", (224, 224), run) > BOUND


def test_missing_unexpected_and_misshapen_names_come_in_one_error():
    weights = state_dict_of("timm")
    del weights["stages.2.blocks.5.gamma"], weights["head.fc.bias"]
    weights["stages.0.blocks.0.mlp.grn.weight"] = np.zeros(1)
    weights["stem.1.weight"] = np.zeros(3)
    with pytest.raises(ValueError) as error:
        pretrained.convert(weights, "atto")
    for part in (
        "2 missing: ",
        "stages.2.blocks.5.gamma",
        "head.fc.bias",
        "1 not expected: stages.0.blocks.0.mlp.grn.weight",
        "1 of another shape: stem.1.weight [3]",
        "ConvNeXt V2",
    ):
        assert part in str(error.value)


def test_another_size_is_refused_with_what_is_left_over():
    with pytest.raises(ValueError, match=r"'tiny', depths \(3, 3, 9, 3\).*missing.*of another shape"):
        pretrained.convert(state_dict_of("facebook"), "tiny")


def test_names_of_no_source_are_refused():
    with pytest.raises(ValueError, match=r"stem\.0\.weight \(timm ConvNeXt\).*patch\.weight"):
        pretrained.convert({"patch.weight": np.zeros((64, 3, 7, 7))}, "atto")


def test_a_fresh_head_replaces_the_one_in_the_file_or_one_that_is_not_there():
    weights = state_dict_of("torchvision")
    kept = pretrained.convert(weights, "atto")
    fresh = pretrained.convert(weights, "atto", 7)
    assert fresh.model.n_classes == 7 and fresh.variables["head"]["kernel"].shape == (320, 7)
    assert kept.model.n_classes == 20
    other = pretrained.convert(weights, "atto", 20, seed=1).variables["head"]["kernel"]
    assert not np.array_equal(other, kept.variables["head"]["kernel"])
    del weights["classifier.2.weight"], weights["classifier.2.bias"]
    again = pretrained.convert(weights, "atto", 7)
    jax.tree.map(np.testing.assert_array_equal, again.variables, fresh.variables)
    with pytest.raises(ValueError, match=r"2 missing: classifier\.2"):
        pretrained.convert(weights, "atto")


def test_eps_comes_with_the_weights():
    archs = [pretrained.convert(state_dict_of(source), "atto").model for source in ("timm", "huggingface")]
    assert [(arch.eps, arch.head_eps) for arch in archs] == [(1e-6, 1e-6), (1e-6, 1e-12)]


@pytest.fixture
def weights_file(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(state_dict_of("timm"), path)
    return path


def test_load_reads_the_size_off_the_tensors(weights_file):
    params, found = pretrained.load(weights_file.parent)
    assert (params.model.name, params.model.n_classes) == ("atto", 20)
    assert (found.resize_px, found.interpolation) == (256, "bicubic")
    jax.tree.map(
        np.testing.assert_array_equal,
        params.variables,
        pretrained.convert(state_dict_of("timm"), "atto").variables,
    )


@pytest.mark.parametrize(
    "source, size, expected",
    [("torchvision", "tiny", (224, 236, "bilinear")), ("torchvision", "base", (224, 232, "bilinear"))],
)
def test_the_usual_preprocessing_of_a_source(tmp_path, source, size, expected):
    found = preprocessing.read(tmp_path, FAMILIES["convnext"].preprocessing(source, size))
    assert (found.image_size, found.resize_px, found.interpolation) == expected


def test_preprocessing_comes_from_the_files_beside_the_weights(tmp_path):
    timm = {"pretrained_cfg": {"input_size": [3, 288, 288], "crop_pct": 0.95, "interpolation": "bilinear"}}
    usual = FAMILIES["convnext"].preprocessing("timm", "atto")
    (tmp_path / "config.json").write_text(json.dumps(timm))
    found = preprocessing.read(tmp_path, usual)
    assert (found.image_size, found.resize_px, found.interpolation) == (288, 303, "bilinear")
    hf = {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3, "image_mean": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(hf))
    found = preprocessing.read(tmp_path, usual)
    assert (found.image_size, found.resize_px, found.interpolation) == (224, 256, "bicubic")
    assert found.mean == (0.5, 0.5, 0.5)


def test_preprocessing_scales_the_shorter_side_and_takes_the_centre():
    rgb = np.zeros((100, 300, 3), np.uint8)
    rgb[:, 150:] = 200
    prepare = preprocessing.Preprocessing(64, 80, "bilinear", (0.5,) * 3, (0.5,) * 3, "here")
    out = prepare(rgb)
    assert out.shape == (64, 64, 3)
    assert (out[:, :28] == 0).all() and (out[:, 36:] == 200).all()


def test_another_mean_and_std_are_folded_into_the_stem():
    params = pretrained.convert(state_dict_of("timm"), "atto")
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    rgb = np.random.default_rng(0).random((1, 37, 41, 3))
    theirs = ((rgb - mean) / std).astype(np.float32)
    imagenet = ((rgb - pretrained.IMAGENET_MEAN) / pretrained.IMAGENET_STD).astype(np.float32)
    expected = forward()(params, theirs)
    folded = forward()(pretrained.fold_normalisation(params, mean, std), imagenet)
    # the same affine map in another order of float32 operations
    np.testing.assert_allclose(folded, expected, rtol=0, atol=BOUND * np.abs(expected).max())
    assert pretrained.fold_normalisation(params, *imagenet_numbers()) is params


def imagenet_numbers():
    return pretrained.IMAGENET_MEAN, pretrained.IMAGENET_STD


def test_files_that_are_no_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors does not exist"):
        pretrained.load(tmp_path / "absent.safetensors")
    pickle = tmp_path / "model.pth"
    pickle.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ValueError, match=r"model\.pth is not a safetensors file.*save_file"):
        pretrained.load(pickle)


def test_a_real_file_loads(weights_path):
    params, _ = pretrained.load(weights_path)
    assert (params.model.name, params.model.n_classes) == ("atto", 200)
    assert sum(leaf.size for leaf in jax.tree.leaves(params.variables)) == 3_438_720
