"""Strict settings for all tests, and the only place that knows where local data may lie."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

import jax
import pytest
from absl import flags

jax.config.update("jax_numpy_rank_promotion", "raise")
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()

_SHARED = pathlib.Path(__file__).parents[2] / "shared"


def _shared(relative: str) -> pathlib.Path:
    path = _SHARED / relative
    if not path.exists():
        pytest.skip(f"local data are absent: {relative}")
    return path


@pytest.fixture(scope="session")
def photos_dir():
    """Real photos in FGVC layout (30 types, 224 px, no banner, no boxes)."""
    return _shared("data/aircraft-photos")


@pytest.fixture(scope="session")
def annotations_dir():
    """The official FGVC-Aircraft lists, without images."""
    return _shared("data/fgvc-annotations")


@pytest.fixture(scope="session")
def samples_dir():
    """Five FGVC-Aircraft photos with their banner."""
    return _shared("data/fgvc-samples")


@pytest.fixture(scope="session")
def weights_path():
    """A small pretrained ConvNeXt-atto, timm's names."""
    return _shared("weights/convnext_atto_64px_200.safetensors")
