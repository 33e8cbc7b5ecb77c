"""The launch scripts on own data: bare activations skip stages, skipped images are named at the end."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def launch(clean_environment, tmp_path):
    """launch(script, config, *arguments) -> (exit code, the log's lines without time)."""

    def launch(script, config, *arguments):
        command = [sys.executable, "-m", f"launch.{script}", f"--config=configs/{config}.py"]
        command += [f"--workdir={tmp_path / 'w'}", *arguments]
        done = subprocess.run(
            command, env=clean_environment, cwd=ROOT, capture_output=True, text=True, timeout=150
        )
        assert "Traceback" not in done.stderr, done.stderr[-3000:]
        return done.returncode, [line[9:] for line in done.stderr.splitlines()]

    return launch


def test_bare_activations_through_the_scripts(launch, tmp_path):
    x = np.random.default_rng(0).normal(size=(70, 2, 2, 16)).astype(np.float32)
    np.savez(tmp_path / "x.npz", activations=x, labels=np.arange(70) % 2)
    settings = [
        f"--config.data.dir={tmp_path / 'x.npz'}",
        "--config.sae.n_features=32",
        "--config.sae.topk.k=2",
    ]
    settings += [
        "--config.sae.batch_size=64",
        "--config.sae.n_epochs=2",
        "--config.analysis.n_permutations=2",
    ]

    def run(script, *more):
        code, lines = launch(script, "arrays", *settings, *more)
        return code, "\n".join(lines)

    code, said = run("train_classifier")
    assert code == 0 and "classifier: skipped, there is no classifier" in said
    code, said = run("pipeline")
    assert code == 0 and "classifier: skipped" in said and "ablation: skipped" in said, said
    assert "There is no classifier here" in (tmp_path / "w/report/index.html").read_text()
    summary = json.loads((tmp_path / "w/summary.json").read_text())
    assert summary["classifier"]["site"] is None and summary["sae"]["fvu"] is not None
    assert not (tmp_path / "w/classifier").exists() and not (tmp_path / "w/ablation").exists()
    code, said = run("report", "--restart=ablation")
    assert code == 0 and "report: dropped" in said and "report: done" in said and "sae: dropped" not in said


def test_one_class_odd_sizes_and_skipped_images_named_in_the_last_lines(launch, tmp_path):
    """One class, photos that are not square, a side that is no multiple of the stride, a batch beyond val."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos" / "b").mkdir(parents=True)
    for i in range(24):
        pixels = rng.integers(0, 255, (32, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / "b" / f"{i}.jpg")
    (tmp_path / "photos" / "b" / "3.jpg").write_text("<html>404 Not Found</html>")
    settings = [
        f"--config.data.dir={tmp_path / 'photos'}",
        "--config.data.kind=image_folder",
        "--config.data.image_size=36",
        "--config.classifier.n_epochs=1",
        "--config.classifier.batch_size=8",
        "--config.classifier.warmup_epochs=0",
        "--config.classifier.dims=(4,4,4,8)",
        "--config.classifier.depths=(0,0,0,1)",
    ]
    code, lines = launch("train_classifier", "demo", *settings)
    assert code == 1 and "b/3.jpg: no known image format" in lines[-1] and "on_bad_image=skip" in lines[-1]
    code, lines = launch("train_classifier", "demo", *settings, "--config.data.on_bad_image=skip")
    assert code == 0, lines
    assert lines[-2].startswith("note: 1 damaged images are left out, listed in ")
    assert "manifest.json: b/3.jpg: no known image format" in lines[-2]
    assert lines[-1].startswith("results: ")
    assert sum("val and test drawn from all images" in line for line in lines) == 2
    assert sum("damaged images are left out" in line for line in lines) == 2  # when found, and at the end
    results = json.loads((tmp_path / "w/classifier/manifest.json").read_text())["results"]
    assert results["test_accuracy"] == 1.0 and sum(results["skipped_images"].values()) == 1
