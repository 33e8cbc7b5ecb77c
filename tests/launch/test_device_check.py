"""The script for ten minutes on a device, proved on the CPU: lines of JSON, resumed, errors kept."""

import json
import subprocess

import pytest

from launch.benchmark import device
from tests.conftest import ROOT

FIRST = "rate_|plain_depthwise_stage1_forward|top_k_lax_k4"


@pytest.fixture
def lines(tmp_path):
    """(file, what a run over the first items leaves in it)."""
    out = tmp_path / "check.jsonl"
    device.run(device.TINY, out, FIRST, 60.0)
    return out, [json.loads(line) for line in out.read_text().splitlines()]


def test_each_item_is_a_line_with_rates_as_shares_of_the_devices_own(lines):
    found = {line["item"]: line for line in lines[1] if "started" not in line}
    assert list(found) == ["rate_copy", "rate_product_bf16", "plain_depthwise_stage1_forward", "top_k_lax_k4"]
    assert found["rate_copy"]["of_copy"] == found["rate_product_bf16"]["of_product"] == 1.0
    conv = found["plain_depthwise_stage1_forward"]
    assert conv["ms"] > 0 and conv["gflop"] == pytest.approx(2 * 8 * 16 * 16 * 8 * 49 / 1e9)
    assert conv["of_product"] > 0 and conv["of_copy"] > 0


def test_a_check_that_is_started_again_goes_on(lines, monkeypatch):
    out, before = lines
    assert device.run(device.TINY, out, FIRST, 60.0) == before
    ran = []

    def items(scale):
        for name in ("rate_copy", "broken", "hangs", "last"):
            yield name, lambda name=name: ran.append(name) or {"ms": 1 / 0 if name == "broken" else 1.0}

    monkeypatch.setattr(device, "items", items)
    with out.open("a") as file:
        file.write(2 * (json.dumps({"item": "hangs", "started": 0.0}) + "\n"))
    after = device.run(device.TINY, out, "", 60.0)
    assert ran == ["broken", "last"]  # what was cut off twice is left out
    assert {line["item"]: line.get("error") for line in after}["broken"].startswith("ZeroDivisionError")
    assert device.run(device.TINY, out, "", -1.0) == after


def test_the_names_of_a_real_check_are_in_the_order_of_what_they_tell():
    names = [name for name, _ in device.items(device.ON_DEVICE)]
    assert len(set(names)) == len(names)
    kinds = list(dict.fromkeys(name.split("_")[0] for name in names))
    assert kinds[:7] == ["rate", "depthwise", "plain", "top", "sae", "classifier", "timm"]
    assert names[-3:] == ["deterministic", "save_s", "demo_bf16"]


def test_the_script_says_what_it_does():
    done = subprocess.run([ROOT / "launch" / "device_check.sh", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--target=cpu" in done.stdout
