"""Every experiment loads, describes a network and an SAE that can be built, and says what it is."""

import importlib
import pathlib

import pytest

from jsae import classifier
from jsae.runtime import stages

ROOT = pathlib.Path(__file__).parents[1]
NO_STUDY = {"known_dictionary"}  # SAEs on made activations, see tests/experiments/test_known_dictionary.py
NAMES = sorted({p.stem for p in (ROOT / "configs").glob("[!_]*.py")} - NO_STUDY)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_can_be_built(name):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config()
    c = config.classifier
    arch = classifier.make_model(c.arch, 100, stem_stride=c.stem_stride, depths=c.depths, dims=c.dims)
    if "classifier" not in stages.skipped(config):
        arch.check_site(config.activations.site)
        grid = config.data.image_size // arch.stride_px(config.activations.site)
        channels = arch.dims[3]
        assert grid >= 6 and channels >= 128
        assert config.sae.n_features >= 4 * channels and config.sae.topk.k <= channels / 8
    for stage in stages.STAGES:
        assert len(stages.digest_of(stages.section(config, stage), None)) == 16
    assert f"--config=configs/{name}.py" in module.__doc__ and "xpected" in module.__doc__


def test_no_config_has_a_key_that_the_demo_lacks():
    def keys(tree, prefix=""):
        found = set()
        for key, value in tree.items():
            inner = hasattr(value, "items") and key != "augmentation"
            found |= keys(value, f"{prefix}{key}.") if inner else {prefix + key}
        return found

    known = keys(importlib.import_module("configs.demo").get_config())
    for name in NAMES:
        assert keys(importlib.import_module(f"configs.{name}").get_config()) == known, name


@pytest.mark.parametrize("name", ["photos", "fgvc_convnext_tiny"])
def test_a_path_to_weights_makes_a_config_that_fine_tunes_from_them(name):
    get_config = importlib.import_module(f"configs.{name}").get_config
    scratch, tuned = get_config(), get_config("some/weights.safetensors")
    assert (scratch.classifier.pretrained, tuned.classifier.pretrained) == ("", "some/weights.safetensors")
    assert scratch.classifier.layer_decay == 1 and tuned.classifier.layer_decay < 1
    assert set(tuned.classifier.augmentation) == set(scratch.classifier.augmentation)


def test_the_digest_of_a_stage_ignores_what_changes_no_result():
    from configs import demo

    one, two = demo.get_config(), demo.get_config()
    two.classifier.log_every_steps = 77
    two.runtime.model_axis = 2
    assert stages.section(one, "classifier") == stages.section(two, "classifier")
    two.classifier.learning_rate = 0.7
    assert stages.section(one, "classifier") != stages.section(two, "classifier")
