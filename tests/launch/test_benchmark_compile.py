"""Counting what compiled programs do, and the section `compile` of the benchmark on small programs."""

import importlib.util
import json
import os
import shutil

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from launch.benchmark import compile as ahead
from launch.benchmark import hlo, programs

KEYS = {
    *("compiles", "seconds", "launches", "gb", "gflop", "sorts", "scatter_loops"),
    *("argument_mib", "temporary_mib", "floor_ms", "collectives"),
}


def counts(function, *arguments):
    return hlo.count(jax.jit(function).lower(*arguments).compile().as_text())


def test_products_count_as_often_as_their_loop_runs():
    x, w = jnp.ones((8, 16)), jnp.ones((16, 16))
    found = counts(lambda x: lax.fori_loop(0, 5, lambda _, x: x @ w, x), x)
    assert found.flops == {"default": 5 * 2 * 8 * 16 * 16}
    exact = counts(lambda x, w: jnp.matmul(x, w, precision="float32"), x, w)
    assert exact.flops == {"f32": 2 * 8 * 16 * 16}
    assert exact.bytes == 4 * (8 * 16 + 16 * 16 + 8 * 16) and exact.launches == 1


@pytest.mark.parametrize("groups", [1, 4])
def test_a_convolution_counts_the_inputs_of_its_group(groups):
    x, kernel = jnp.ones((2, 6, 6, 4)), jnp.ones((3, 3, 4 // groups, 8))

    def convolve(x, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=layout, feature_group_count=groups
        )

    assert counts(convolve, x, kernel).flops == {"default": 2 * (2 * 6 * 6 * 8) * 9 * 4 // groups}


def test_sorts_and_loops_made_of_scatters_are_seen():
    x, at = jnp.ones((64, 8)), jnp.arange(32) % 7
    assert counts(jnp.sort, x).sorts == 1
    assert counts(lambda x: lax.top_k(x, 3), x).sorts == 1
    assert counts(lambda x: x * 2, x).sorts == 0
    added = counts(lambda x, at: x.at[at].add(jnp.ones((32, 8))), x, at)
    assert added.scatter_loops == 1
    assert counts(lambda x, n: lax.fori_loop(0, n, lambda _, x: x * 2, x), x, at[3]).scatter_loops == 0


def test_what_a_gpu_and_a_tpu_write_is_read():
    text = """HloModule m

%region (p: f32[8]) -> f32[8] {
  ROOT %p = f32[8]{0} parameter(0)
}

ENTRY %main (a: bf16[4,8], b: bf16[8,16]) -> f32[16] {
  %a = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[8,16]{1,0} parameter(1)
  %near = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} copy(%a)
  %part = ((bf16[8,16]{1,0}), bf16[2,16]{1,0:T(8,128)S(1)}, s32[]{:T(128)S(1)}) slice-start(%b)
  %blas = (bf16[4,16]{1,0}, s8[32]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}
  %top = (f32[4,2]{1,0}, s32[4,2]{1,0}) custom-call(%a), custom_call_target="__gpu$TopK"
  %started = (f32[4]{0}, f32[16]{0}) all-gather-start(%c), channel_id=1
  %c = f32[4]{0} constant({0, 0, 0, 0})
  %summed = (f32[4]{0:T(128)S(1)}, f32[]{:T(128)}) all-reduce(%c, %c), to_apply=%region
  ROOT %done = f32[16]{0} all-gather-done(%started)
}
"""
    found = hlo.count(text)
    assert found.flops == {"bf16": 2 * 4 * 16 * 8}
    assert found.sorts == 1 and found.collectives == {"all-gather": [1, 64.0], "all-reduce": [1, 20.0]}
    of_part = 2 * 32 + 4  # what is read, not all that it is read from
    of_copy, of_blas, of_top, of_gather, of_sum = 64, 64 + 256 + 128 + 32, 64 + 64, 16 + 64, 4 + 2 * 16
    of_products = of_copy + of_blas + of_top
    assert found.bytes == of_part + of_products + of_gather + of_sum and found.launches == 6


def test_programs_are_measured_once_and_kept(tmp_path, monkeypatch, capsys):
    out, small = tmp_path / "out.json", programs.SMALL
    pattern = "closed_form_(1x1|8x1)"
    ahead.run("cpu", pattern, str(out), small)
    found = json.loads(out.read_text())["compile"]["cpu"]
    assert set(found) == {"closed_form_1x1", "closed_form_8x1"}
    one, eight = found["closed_form_1x1"], found["closed_form_8x1"]
    assert all(set(row) == KEYS and row["compiles"] and row["floor_ms"] is None for row in (one, eight))
    assert one["gflop"] > eight["gflop"] > 0 and not one["collectives"]
    assert sum(n for n, _ in eight["collectives"].values()) > 0
    assert "| closed_form_8x1 |" in capsys.readouterr().out
    monkeypatch.setattr(ahead, "measure", None)
    ahead.run("cpu", pattern, str(out), small)
    assert json.loads(out.read_text())["compile"]["cpu"] == found


def test_a_program_that_does_not_compile_has_a_row_that_says_why():
    def make(devices):
        raise NotImplementedError("not on this device\nat all")

    row = ahead.measure(make, "cpu", [])
    assert not row["compiles"] and row["error"] == "NotImplementedError: not on this device"
    assert ahead.table({"it": row}).endswith("| NotImplementedError: not on this device |")


def test_unknown_names_are_told_what_there_is():
    with pytest.raises(
        ValueError, match="no program matches 'sea'; there are classifier_step_small64_b8_bf16"
    ):
        ahead.rows("cpu", "sea", {}, lambda _: None, programs.SMALL)
    with pytest.raises(ValueError, match="--target=a100 is unknown; expected h200"):
        ahead.devices("a100")


def test_the_floor_is_that_of_bytes_or_of_products():
    few = hlo.Counts(1, 4.8e9, {"bf16": 1e9}, 0, 0, {})
    many = hlo.Counts(1, 1.0, {"bf16": 989e9, "f32": 67e9}, 0, 0, {})
    assert ahead.floor_ms(few, "h200") == pytest.approx(1.0)
    assert ahead.floor_ms(many, "h200") == pytest.approx(2.0)
    assert ahead.floor_ms(few, "v5e:2x4") == pytest.approx(4.8e9 / 819e6)


BOUNDS = {  # of compiled steps at full size: GB, and how many collectives of which kind
    ("h200", "sae_relu_l1_n4096_bf16_1x1"): (1.35, {}),
    ("h200", "sae_topk_n4096_bf16_1x1"): (1.7, {}),
    ("h200", "sae_topk_n4096_bf16_8x1"): (0.55, {"all-gather": 1, "reduce-scatter": 2, "all-reduce": 2}),
    ("v5e:2x4", "sae_topk_n4096_bf16_8x1"): (0.6, {"all-gather": 1, "reduce-scatter": 2, "all-reduce": 2}),
}
MISSING = {
    "h200": None
    if importlib.util.find_spec("jax_cuda13_plugin") and shutil.which("ptxas")
    else "needs jax-cuda13-plugin, jax-cuda13-pjrt and ptxas",
    "v5e:2x4": None
    if importlib.util.find_spec("libtpu") or "TPU_LIBRARY_PATH" in os.environ
    else "needs libtpu",
}


@pytest.mark.parametrize("target, name", BOUNDS)
def test_a_step_compiled_for_an_accelerator_stays_within_its_bounds(target, name):
    if MISSING[target]:
        pytest.skip(MISSING[target])
    row = ahead.rows(target, f"^{name}$", {}, lambda _: None, programs.Sizes())[name]
    gb, collectives = BOUNDS[target, name]
    assert row["compiles"], row
    assert row["gb"] <= gb and not row["sorts"] and not row["scatter_loops"]
    assert all(n <= collectives.get(kind, 0) for kind, (n, _) in row["collectives"].items())
