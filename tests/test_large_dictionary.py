"""An SAE that lies on eight devices goes through all stages, and none of them ever holds the whole of it."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from jsae.runtime import artifacts
from tests.conftest import ROOT

N_FEATURES = 2**15 if os.environ.get("JSAE_SLOW_TESTS") else 2**12  # analysis takes F^2 steps
PROGRAM = """
import importlib, sys
from configs import demo

config = demo.get_config("small")
config.runtime.update(data_axis=1, model_axis=8)
config.data.update(image_size=48, n_train=64, n_val=8, n_test=16)
config.classifier.update(stem_stride=2, depths=(0, 0, 0, 1), dims=(8, 8, 8, 16))
config.classifier.update(n_epochs=1.0, warmup_epochs=0.0, batch_size=16)
config.sae.update(n_features=int(sys.argv[2]), n_epochs=2.0, lr_warmup_steps=1, batch_size=64)
config.analysis.update(n_permutations=2, batch_size=16)
config.analysis.pixel_maps.update(n_features=1, n_patches=1)
config.ablation.update(features=(0, 1), max_images=2, batch_size=16, n_joint=4)
for stage in ("classifier", "activations", "sae", "analysis", "ablation"):
    importlib.import_module(f"jsae.{stage}.run").run(config, sys.argv[1])
"""


@pytest.fixture(scope="module")
def made(clean_environment, tmp_path_factory):
    """(workdir, texts of all programs that were compiled for it)."""
    workdir, dump = tmp_path_factory.mktemp("large"), tmp_path_factory.mktemp("dump")
    environment = clean_environment | {
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # what is not compiled is not dumped
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_dump_to={dump} --xla_dump_hlo_as_text",
    }
    command = [sys.executable, "-c", PROGRAM, str(workdir), str(N_FEATURES)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-5000:]
    return workdir, [path.read_text() for path in dump.glob("*after_optimizations.txt")]


def test_every_feature_is_trained_exported_analysed_and_ablated(made):
    workdir, _ = made
    weights = load_file(workdir / "sae" / "export" / "sae_weights.safetensors")
    assert N_FEATURES in weights["W_dec"].shape and np.isfinite(weights["W_dec"]).all()
    for stage, table in (("analysis", "features"), ("ablation", "all_features")):
        rows = artifacts.read_table(workdir / stage / f"{table}.parquet")
        assert rows["feature"].to_pylist() == list(range(N_FEATURES))


def test_no_program_holds_the_dictionary_or_the_features_of_a_batch(made):
    workdir, programs = made
    n_channels = artifacts.read_json(workdir / "activations" / "test" / "manifest.json")["n_channels"]
    assert len(programs) > 20
    shapes = {shape for text in programs for shape in re.findall(r"[a-z]+\d+\[([\d,]+)\]", text)}
    sizes = [[int(n) for n in shape.split(",")] for shape in shapes]
    assert any(N_FEATURES // 8 in size for size in sizes)
    whole = [size for size in sizes if N_FEATURES in size and np.prod(size) >= N_FEATURES * n_channels]
    assert not whole
