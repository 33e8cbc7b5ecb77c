"""The rows of metrics.jsonl as TensorBoard's events; those of a run that was killed are purged."""

import sys

import pytest

from jsae.runtime import logs
from jsae.runtime.context import RunContext


def events(folder):
    """All events of a folder, in the order in which they were written.

    A record is its length (8 bytes), a checksum of it (4), the event, and a checksum of that (4).
    """
    from tensorboardX.proto import event_pb2

    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            end = 12 + int.from_bytes(data[:8], "little")
            found.append(event_pb2.Event.FromString(data[12:end]))
            data = data[end + 4 :]
    return found


def scalars(folder):
    return [(e.step, v.tag, v.simple_value) for e in events(folder) for v in e.summary.value]


@pytest.fixture
def board():
    pytest.importorskip("tensorboardX", reason="not installed: pip install 'jsae[tensorboard]'")
    return logs.tensorboard_writer()


def test_rows_are_events(board, tmp_path):
    rows = RunContext(tensorboard=board).metrics_log(tmp_path / "metrics.jsonl")
    rows.write(10, {"train/loss": 0.5, "train/vectors_per_s": None})
    rows.write(20, {"val/accuracy": 0.25})
    rows._board.close()
    assert scalars(tmp_path / "tensorboard") == [(10, "train/loss", 0.5), (20, "val/accuracy", 0.25)]
    assert [row["step"] for row in logs.read_metrics(tmp_path / "metrics.jsonl")] == [10, 20]


def test_what_lies_beyond_the_restored_step_is_purged(board, tmp_path):
    rows = RunContext(tensorboard=board).metrics_log(tmp_path / "metrics.jsonl")
    for step in (10, 20, 30):
        rows.write(step, {"train/loss": 0.5})
    rows._board.close()
    resumed = logs.MetricsLog(tmp_path / "metrics.jsonl", board)
    resumed.rewind(20)
    resumed.write(30, {"train/loss": 0.25})
    resumed._board.close()
    starts = [e.step for e in events(tmp_path / "tensorboard") if e.HasField("session_log")]
    assert starts == [21], "TensorBoard drops what was written before at this step and later"
    assert scalars(tmp_path / "tensorboard")[-1] == (30, "train/loss", 0.25)


def test_without_the_setting_nothing_is_written(tmp_path):
    RunContext().metrics_log(tmp_path / "metrics.jsonl").write(1, {"train/loss": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_where_it_is_missing_the_run_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(RuntimeError, match=r"needs tensorboardX: pip install 'jsae\[tensorboard\]'"):
        logs.tensorboard_writer()
