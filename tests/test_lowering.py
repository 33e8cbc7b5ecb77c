"""Every program of the product lowers for GPUs and TPUs, and what must not come back in their text.

Lowering needs no package beside jax and compiles nothing: a program that asks for something that a platform
does not have fails here, and so does one that sorts or scatters where it did not before.
"""

import re

import jax
import pytest

from launch.benchmark import programs

CATALOGUE = programs.catalogue(programs.SMALL)
# Not those for CPUs only: rows of active features, and the path that is chosen by the devices at hand
ACCELERATED = [name for name in CATALOGUE if not re.search("_f32_|_sparse_|_deterministic_", name)]
NAMES = [name for name in ACCELERATED if re.search("_4x2$|^sae_.*_1x1$|_(test|many)_1x1$", name)]
# The most sorts, top_k and scatters that a program's text may have; all others none. XLA sorts for a top_k,
# and makes a loop of a scatter where results must be the same.
BOUNDS = {
    "classifier_step": (0, 0, 2),  # cross-entropy's labels; mixed images
    "analysis_test": (0, 1, 0),  # the strongest patches: among B + n_top images
    "analysis_pixel_maps": (4, 0, 4),  # pixels in the order of each of four maps
    "ablation_test": (1, 2, 9),  # joint removals: by effect and in a random order; by label
    "ablation_mediation_rank": (0, 0, 3),
    "closed_form": (0, 0, 3),
}
COUNTED = ('"stablehlo.sort"(', "top_k", '"stablehlo.scatter"(')


@pytest.mark.parametrize("name", NAMES)
def test_every_program_lowers_for_gpu_and_tpu(name):
    function, arguments = CATALOGUE[name](jax.devices())
    traced = function.trace(*arguments)
    most = next((bound for start, bound in BOUNDS.items() if name.startswith(start)), (0, 0, 0))
    for platform in ("cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "func.func public @main" in text
        found = tuple(text.count(word) for word in COUNTED)
        assert all(n <= bound for n, bound in zip(found, most, strict=True)), (platform, found, most)
