"""Workdirs on gs://: the real clients against a server on loopback, and what is said where one is missing."""

import json
import sys
import urllib.parse
from pathlib import Path

import numpy as np
import pytest

import jsae
from jsae.runtime import artifacts, remote
from tests.runtime import gcs_server
from tests.together import together

ROOT = Path(__file__).parents[2]
STAGES = ("classifier", "activations", "sae", "analysis")
RUN = f"from launch import start; start.run_stages({STAGES})"
SMALL = {
    "data": dict(image_size=48, n_train=64, n_val=16, n_test=16),
    "classifier": dict(stem_stride=2, depths=(0, 0, 0, 1), dims=(8, 8, 8, 16), n_epochs=2, batch_size=16),
    "activations": dict(batch_size=16),
    "sae": {
        "store": "streamed",
        "n_features": 32,
        "topk.k": 2,
        "batch_size": 64,
        "n_epochs": 1,
        "lr_warmup_steps": 2,
    },
    "analysis": {"n_permutations": 2, "pixel_maps.n_features": 0, "batch_size": 16},
}


@pytest.fixture
def bucket():
    with gcs_server.Bucket() as bucket:
        yield bucket


def run(bucket, environment, processes):
    """(exit codes, lines on stderr) of a small study in so many processes on the bucket."""
    command = [sys.executable, "-c", RUN, "--config=configs/demo.py:small", "--workdir=gs://bucket/w"]
    command += [f"--config.{room}.{key}={value}" for room in SMALL for key, value in SMALL[room].items()]
    environment = environment | gcs_server.environment(bucket.server_port)
    ended = together(command, environment, processes)
    return [code for code, *_ in ended], "".join(err for *_, err in ended)


def test_a_study_on_gs_with_two_processes(bucket, clean_environment, tmp_path):
    """Checkpoints, shards and tables go through orbax, tensorstore and gcsfs; a shard comes once a host."""
    codes, said = run(bucket, clean_environment | {"JSAE_CACHE": str(tmp_path)}, 2)
    assert codes == [0, 0], said[-3000:]
    names = set(bucket.objects)
    assert {f"w/{stage}/manifest.json" for stage in STAGES} <= names and "w/summary.json" in names
    for stage in ("classifier", "sae"):
        assert any(f"w/{stage}/checkpoints/" in n and n.endswith("/commit_success.txt") for n in names)
    for split in ("train", "val", "test"):
        shard = urllib.parse.quote(f"w/activations/{split}/shard-00000.npy", safe="")
        fetched = [sent for method, path, sent in bucket.log if f"/{shard}?alt=media" in path]
        assert sum(fetched) <= len(bucket.objects[urllib.parse.unquote(shard)][1]), split
    assert not any(artifacts.UNFINISHED in path for _, path, _ in bucket.log), "an object appears whole"
    summary = json.loads(bucket.objects["w/summary.json"][1])
    assert summary["sae"]["fvu"] is not None


@pytest.mark.parametrize(
    "path, hidden, words",
    [
        (
            "gs://b/w",
            "gcsfs",
            r"gs://b/w: gs:// needs gcsfs .*pip install 'jsae\[gcs\]' \(launch/venv.sh gcs\)",
        ),
        ("gs://b/w", "google.cloud.storage", "needs google.cloud.storage"),
        ("s3://b/w", "s3fs", "s3:// needs s3fs .*pip install s3fs"),
        ("ftp://b/w", None, "there is no ftp://; a folder is local, or on gs://"),
    ],
)
def test_what_a_remote_path_needs_is_said_in_one_line(monkeypatch, path, hidden, words):
    if hidden:
        monkeypatch.setitem(sys.modules, hidden, None)
    with pytest.raises(RuntimeError, match=words) as told:
        remote.check("/gs/local", path)
    assert "\n" not in str(told.value)
    with pytest.raises(RuntimeError, match=words):
        jsae.load(path)
    remote.check("/gs/local", "runs/x", "C:/x")


def test_all_paths_of_a_config_are_looked_at():
    config = {"report": {"twin": "gs://b/w"}, "sweep": {"variant": ("topk",), "k": [1]}, "seed": 0}
    assert remote.strings_in(config) == ["gs://b/w", "topk"]


def test_a_place_that_refuses_is_told_in_one_line(monkeypatch):
    class Refusing:
        def exists(self):
            raise PermissionError("Anonymous caller does not have\nstorage.objects.get access")

    monkeypatch.setattr(remote.epath, "Path", lambda path: Refusing())
    with pytest.raises(RuntimeError, match="gs://b/w cannot be reached: PermissionError: Anonymous caller"):
        remote.check("gs://b/w")


def test_an_object_that_grows_while_it_is_read_comes_whole(bucket, monkeypatch):
    """The other processes read the checksums while the writer records the next file's."""
    for name, value in gcs_server.environment(bucket.server_port).items():
        monkeypatch.setenv(name, value)
    gcsfs = pytest.importorskip("gcsfs")
    gcsfs.GCSFileSystem.clear_instance_cache()
    folder = remote.epath.Path("gs://bucket/w")
    artifacts.write_array(folder / "0.npy", np.zeros(1))
    size_asked = bucket.resource

    def grow(name):
        answer = size_asked(name)
        if name.endswith(artifacts.CHECKSUMS):
            generation, data = bucket.objects[name]
            more = json.loads(data) | {f"{generation}.npy": ["0" * 8]}
            bucket.objects[name] = (generation + 1, json.dumps(more).encode())
        return answer

    monkeypatch.setattr(bucket, "resource", grow)
    np.testing.assert_array_equal(artifacts.read_array(folder / "0.npy"), np.zeros(1))
    gcsfs.GCSFileSystem.clear_instance_cache()
