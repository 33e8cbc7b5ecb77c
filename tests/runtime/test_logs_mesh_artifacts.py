"""metrics.jsonl rewinds to a step, tables are whole, the mesh refuses what it cannot deal."""

import json
import subprocess
import sys

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jsae.runtime import artifacts, environment, logs, mesh


def test_rewinding_drops_later_rows_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = logs.MetricsLog(path)
    for step in (10, 20, 30):
        rows.write(step, {"train/loss": np.float32(step), "train/rate": float("nan")})
    with open(path, "a") as file:
        file.write('{"step": 40, "train/lo')
    logs.MetricsLog(path).rewind(20)
    assert [row["step"] for row in logs.read_metrics(path)] == [10, 20]
    assert logs.read_metrics(path)[0] == {"step": 10, "train/loss": 10.0, "train/rate": None}
    rows.write(30, {"train/loss": 1})
    assert len(path.read_text().splitlines()) == 3


def test_a_note_is_said_once_and_kept_for_the_end(notes, caplog):
    logs.get_logger().propagate = True
    for text in ("a", "b", "a"):
        logs.note(text)
        logs.get_logger().warning(text)
    assert notes.texts == ["a", "b"] and caplog.messages == ["a", "a", "b", "b", "a"]


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "summary.json"
    artifacts.write_json(path, {"a": np.float32(1)})
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifacts.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1.0} and list(tmp_path.iterdir()) == [path]


def test_a_table_carries_its_manifest(tmp_path):
    artifacts.write_table(tmp_path / "t.parquet", pa.table({"feature": [1, 2]}), {"digest": "abc"})
    table = artifacts.read_table(tmp_path / "t.parquet")
    assert json.loads(table.schema.metadata[artifacts.MANIFEST_KEY]) == {"digest": "abc"}
    with pytest.raises(FileNotFoundError, match=r"u.parquet does not exist"):
        artifacts.read_table(tmp_path / "u.parquet")


def test_the_mesh():
    assert dict(mesh.make_mesh().shape) == {"data": 8, "model": 1}
    assert dict(mesh.make_mesh(model=4).shape) == {"data": 2, "model": 4}
    with pytest.raises(ValueError, match=r"model_axis=3 must divide the 8 devices"):
        mesh.make_mesh(model=3)
    with pytest.raises(
        ValueError, match=r"data_axis=3 x runtime.model_axis=2 is not the number of devices, 8"
    ):
        mesh.make_mesh(data=3, model=2)
    with pytest.raises(
        ValueError, match=r"config.x.batch_size=12 must be a positive multiple of the mesh's data axis, 8"
    ):
        mesh.check_batch(mesh.make_mesh(), 12, "config.x.batch_size")


def test_batches_are_dealt_over_the_data_axis():
    device_mesh = mesh.make_mesh(devices=jax.devices()[:4])
    x = np.arange(16).reshape(8, 2)
    put = mesh.put_batch(device_mesh, {"x": x})["x"]
    assert [shard.data.shape for shard in put.addressable_shards] == [(2, 2)] * 4
    np.testing.assert_array_equal(np.asarray(put), x)


@pytest.mark.parametrize("n_processes", [1, 2])
def test_sums_are_dealt_without_a_reduce_scatter_between_processes_on_cpus(n_processes, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: n_processes)
    rows = (
        np.random.default_rng(0).integers(0, 9, (8, 16, 3)).astype(np.float32)
    )  # of 8 devices; sums are exact
    deal = jax.shard_map(
        lambda mine: mesh.sum_dealt(mine[0], "data"),
        mesh=mesh.make_mesh(8, 1),
        in_specs=jax.P("data"),
        out_specs=jax.P("data"),
    )
    compiled = jax.jit(deal).lower(rows).compile()
    np.testing.assert_array_equal(compiled(rows), rows.sum(0))
    assert ("reduce-scatter" in compiled.as_text()) == (n_processes == 1)


def test_a_script_that_reads_a_table_and_ends_is_not_aborted(tmp_path):
    """With pq.read_table every second such script was: four in a row pass by luck once in sixteen times."""
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({f"c{i}": [0.5] * 14 for i in range(60)}), path)
    script = f"from jsae.runtime import artifacts; artifacts.read_table({str(path)!r})"
    for _ in range(4):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "said, words",
    [
        ("535.104.05", r"driver 535.104.05; .*\[cuda12\]"),
        ("580.65", r"driver 580.65; .*\[cuda13\]"),
        (None, r"driver unknown; .*\[cuda13\]"),
    ],
)
def test_a_gpu_that_jax_does_not_see_is_told_what_its_driver_can_run(tmp_path, monkeypatch, said, words):
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f"#!/bin/sh\necho {said}; echo {said}\n" if said else "#!/bin/sh\necho NVML; exit 18\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(environment.os.path, "exists", lambda path: path == "/dev/nvidiactl")
    with pytest.raises(RuntimeError, match=words):
        environment.check_accelerator()
