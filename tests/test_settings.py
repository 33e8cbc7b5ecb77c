"""Every number of a config has an answer before anything runs: it is used or refused, and 0 has a meaning."""

import importlib
import json
import pathlib
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import arrays, demo
from jsae.ablation.counterfactual import ground_truth
from jsae.classifier import pretrained
from jsae.data import settings as data_settings
from jsae.runtime import settings, stages
from jsae.sae.variants import VARIANTS

MODULES = {name: importlib.import_module(f"jsae.{name}.run") for name in stages.STAGES}
RANGES = {
    "config": {"seed": settings.SEED},
    "config.data": data_settings.RANGES,
    "config.runtime": settings.RUNTIME,
    "config.classifier.augmentation": data_settings.AUGMENTATION,
    "config.ablation.counterfactual": ground_truth.RANGES,
    **{f"config.{name}": module.RANGES for name, module in MODULES.items()},
    "config.analysis.pixel_maps": MODULES["analysis"].PIXEL_MAP_RANGES,
    "config.ablation.mediation": MODULES["ablation"].MEDIATION_RANGES,
    **{f"config.sae.{name}": variant.ranges for name, variant in VARIANTS.items()},
}
LISTS_OF_NUMBERS = {"ablation.features": (3,)}  # empty in the demo


def check_all(config) -> None:
    """What launch.start does before the first stage."""
    for name, module in MODULES.items():
        if name not in stages.skipped(config):
            module.check_config(config)


def numbers(node, path="config"):
    """(section, key, value) of every number of a config, those in lists included; what experiments alone read
    has checks of their own."""
    for key, value in node.items():
        value = LISTS_OF_NUMBERS.get(f"{path}.{key}".removeprefix("config."), value)
        first = value[0] if isinstance(value, tuple) and value else value
        if hasattr(value, "items"):
            yield from () if key in ("sweep", "planted") else numbers(value, f"{path}.{key}")
        elif isinstance(first, int | float) and not isinstance(first, bool):
            yield path, key, value


NUMBERS = list(numbers(demo.get_config()))


@pytest.mark.parametrize("form", ["full", "small"])
def test_the_configs_pass(form):
    check_all(demo.get_config(form))
    check_all(arrays.get_config())


def changed(section, key, value):
    """The demo's config with another value of one key, in a list where the key holds one."""
    config = demo.get_config()
    config.classifier.augmentation.update(crop="pad", min_scale=0.5)
    if section.startswith("config.sae."):
        config.sae.variant = section.removeprefix("config.sae.")
    node = config
    for name in section.split(".")[1:]:
        node = node[name]
    old = LISTS_OF_NUMBERS.get(f"{section}.{key}".removeprefix("config."), node[key])
    is_float = isinstance(old[0] if isinstance(old, tuple) else old, float)
    value = float(value) if is_float else value
    node[key] = (value,) if isinstance(old, tuple) else value
    return config


@pytest.mark.parametrize("section, key", [row[:2] for row in NUMBERS], ids=lambda x: x)
def test_every_number_is_checked(section, key):
    assert key in RANGES[section], f"{section}.{key} has no entry in a table of valid numbers"
    with pytest.raises(ValueError, match=rf"{section}\.{key}=|{key}=-7|\b{key}\b"):
        check_all(changed(section, key, -7))


@pytest.mark.parametrize("section, key", [row[:2] for row in NUMBERS], ids=lambda x: x)
def test_0_is_refused_by_name_or_has_a_meaning(section, key):
    valid = RANGES[section][key]
    if valid.holds(0):
        assert valid.text.startswith(("at least 0", "in 0..")) or key in ("data_axis",), valid.text
        return
    with pytest.raises(ValueError, match=rf"\b{key}\b"):
        check_all(changed(section, key, 0))


@pytest.mark.parametrize("key", ["learning_rate", "n_epochs", "weight_decay"])
def test_what_is_not_finite_is_refused(key):
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"config\.classifier\.{key}="):
            check_all(changed("config.classifier", key, value))


LATE = [  # a mistake in a later stage, and what is said before the first one trains; 8 devices
    (
        "activations",
        {"batch_size": 12},
        r"config\.activations\.batch_size=12 must be a positive multiple of .* 8",
    ),
    ("analysis", {"batch_size": 5}, r"config\.analysis\.batch_size=5 must be a positive multiple of .* 8"),
    ("analysis", {"n_top": 15}, r"config\.analysis\.n_top=15 must be at least 16, which purity16"),
    ("sae", {"frozen": "dekoder"}, "frozen='dekoder'; the valid values are '', 'decoder' and 'encoder'"),
    ("sae", {"precision": "float16"}, "precision='float16'; the valid values"),
    ("sae", {"store": "disk"}, r"config\.sae\.store='disk' is unknown; valid are 'auto'"),
    ("sae", {"k": 3}, "config.sae.k is a setting of single variants: config.sae.topk.k"),
    ("sae", {"variant": "matryoshka", "matryoshka": {"prefix_shares": (0.5, 0.25)}}, "prefixes that rise"),
    ("ablation", {"features": (3, 512)}, "there is no feature 512; features are 0 .. 511"),
    ("ablation", {"batch_size": 5}, r"config\.ablation\.batch_size=5 must be a positive multiple of .* 8"),
    ("report", {"twin": "nowhere"}, r"config\.report\.twin='nowhere' holds no trained SAE"),
    ("classifier", {"init": "zeros"}, r"config\.classifier\.init='zeros' is unknown; valid are 'normal'"),
    ("classifier", {"micro_batches": 5}, "batch_size=32 must be a multiple of .*micro_batches=5"),
]


@pytest.mark.parametrize("section, values, words", LATE, ids=[f"{row[0]} {row[1]}" for row in LATE])
def test_a_mistake_of_a_later_stage_is_found_before_the_first(section, values, words):
    config = demo.get_config()
    config[section].update(values)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        check_all(config)


def test_features_that_the_model_axis_does_not_divide_are_found_before_the_first_stage():
    config = demo.get_config()
    config.runtime.model_axis, config.sae.n_features = 8, 508
    with pytest.raises(ValueError, match="n_features=508 must be a multiple of the mesh's model axis, 8"):
        check_all(config)


def test_the_site_is_held_against_the_network_of_a_file_by_its_header(tmp_path):
    reference = json.loads(
        (pathlib.Path(__file__).parent / "classifier/pretrained_reference.json").read_text()
    )["references"][0]
    weights = {name: np.zeros(shape, np.float32) for name, shape in reference["tensors"].items()}
    path = tmp_path / "model.safetensors"
    save_file(weights, path)
    model = pretrained.load(path)[0].model
    assert pretrained.read_model(path) == pretrained.read_model(tmp_path) == model
    config = demo.get_config()
    config.classifier.pretrained, config.activations.site = str(path), "stage3.block99"
    with pytest.raises(ValueError, match=r"no site 'stage3\.block99'; the sites are stem, stage1"):
        check_all(config)
    path.write_bytes(struct.pack("<Q", 4) + b"{}  "[:2])
    with pytest.raises(ValueError, match="not a safetensors file"):
        check_all(config)
    path.unlink()  # a run that has a checkpoint does not need it any more
    check_all(config)


def test_the_site_is_held_against_the_classifier_of_another_workdir(tmp_path):
    config = demo.get_config()
    config.classifier.workdir = str(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no finished classifier"):
        check_all(config)
