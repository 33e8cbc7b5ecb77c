"""Every experiment loads, describes a network and an SAE that can be built, and says what it is."""

import importlib
import pathlib

import pytest

from jsae.classifier import convnext
from jsae.runtime import stages

ROOT = pathlib.Path(__file__).parents[1]
NO_STUDY = {"known_answer"}  # SAEs on made activations, see tests/sae/test_known_answer.py
NAMES = sorted({p.stem for p in (ROOT / "configs").glob("[!_]*.py")} - NO_STUDY)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_can_be_built(name):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config()
    c = config.classifier
    arch = convnext.make_arch(c.arch, 100, stem_stride=c.stem_stride, depths=c.depths, dims=c.dims)
    arch.check_site(config.activations.site)
    grid = config.data.image_size // arch.stride(config.activations.site)
    channels = arch.dims[3]
    assert grid >= 6 and channels >= 128
    assert config.sae.n_features >= 4 * channels and config.sae.k <= channels / 8
    for stage in stages.STAGES:
        assert len(stages.digest_of(stages.section(config, stage), None)) == 16
    assert f"--config=configs/{name}.py" in module.__doc__ and "xpected" in module.__doc__


def test_the_digest_of_a_stage_ignores_what_changes_no_result():
    from configs import demo

    one, two = demo.get_config(), demo.get_config()
    two.classifier.log_every_steps = 77
    two.runtime.model_axis = 2
    assert stages.section(one, "classifier") == stages.section(two, "classifier")
    two.classifier.learning_rate = 0.7
    assert stages.section(one, "classifier") != stages.section(two, "classifier")
