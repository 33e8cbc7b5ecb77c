"""The activation store: what is read is what was stored, with where it comes from; statistics are exact."""

import errno
import os

import numpy as np
import pytest
from etils import epath

from jsae.activations import ActivationStore, local_copy, store
from jsae.activations.run import measure
from jsae.runtime import artifacts, digests, disks, paths


def write(folder, acts, per_shard, dtype="float32", **more):
    sizes = [len(acts[i : i + per_shard]) for i in range(0, len(acts), per_shard)]
    for i, start in enumerate(range(0, len(acts), per_shard)):
        shard = store.to_stored(acts[start : start + per_shard], dtype)
        artifacts.write_array(folder / store.shard_name(i), shard)
    manifest = {
        "site": "stage4",
        "grid": list(acts.shape[1:3]),
        "n_channels": acts.shape[3],
        "n_images": len(acts),
        "dtype": dtype,
        "shards": sizes,
        "class_names": ["a", "b"],
        "mean": [0.0] * acts.shape[3],
        "scale": 1.0,
    }
    artifacts.write_json(folder / "manifest.json", manifest | more)
    return sizes


@pytest.mark.parametrize("dtype", store.DTYPES)
def test_reads_across_shards(tmp_path, dtype):
    acts = np.random.default_rng(0).normal(size=(11, 2, 3, 5)).astype(np.float32)
    if dtype == "bfloat16":
        acts = store.from_stored(store.to_stored(acts, dtype), dtype)
    write(tmp_path, acts, 4, dtype)
    opened = ActivationStore.open(tmp_path)
    assert (opened.grid, opened.n_images, opened.n_channels, opened.n_vectors) == ((2, 3), 11, 5, 66)
    for start, stop in ((0, 11), (3, 5), (4, 8), (2, 10), (11, 11)):
        np.testing.assert_array_equal(opened.read(start, stop), acts[start:stop])


def test_batches_pad_the_last_with_a_mask(tmp_path):
    acts = np.random.default_rng(0).normal(size=(7, 1, 1, 2)).astype(np.float32)
    write(tmp_path, acts, 3)
    artifacts.write_array(tmp_path / "labels.npy", np.arange(7, dtype=np.int32))
    batches = list(ActivationStore.open(tmp_path).batches(4))
    assert all(batch.acts.shape == (4, 1, 1, 2) for batch in batches)
    np.testing.assert_array_equal(batches[1].mask, [1, 1, 1, 0])
    assert batches[1].labels[3] == -1 and batches[1].images.tolist()[:3] == [4, 5, 6]
    np.testing.assert_array_equal(np.concatenate([b.acts[b.mask > 0] for b in batches]), acts)
    chosen = list(ActivationStore.open(tmp_path).batches(2, [1, 4, 6]))
    np.testing.assert_array_equal(np.concatenate([b.acts[b.mask > 0] for b in chosen]), acts[[1, 4, 6]])


def test_mean_and_scale_with_a_huge_offset(tmp_path):
    rng = np.random.default_rng(1)
    offset = 1000 * rng.normal(size=6)
    acts = (offset + rng.normal(size=(9, 2, 2, 6))).astype(np.float32)
    sizes = write(tmp_path, acts, 4)
    found = measure(tmp_path, sizes, "float32")
    vectors = acts.reshape(-1, 6).astype(np.float64)
    np.testing.assert_allclose(found["mean"], vectors.mean(0), rtol=1e-7)  # float32 of a float64 mean
    scale = np.sqrt(((vectors - vectors.mean(0)) ** 2).sum(1).mean() / 6)
    np.testing.assert_allclose(found["scale"], scale, rtol=1e-6)
    gamma = np.linalg.norm(vectors.mean(0)) / np.linalg.norm(vectors.std(0))
    np.testing.assert_allclose(found["gamma"], gamma, rtol=1e-6)


def test_constant_and_non_finite_activations_are_named(tmp_path):
    sizes = write(tmp_path / "constant", np.ones((4, 1, 1, 3), np.float32), 2)
    with pytest.raises(ValueError, match="are the same vector"):
        measure(tmp_path / "constant", sizes, "float32")
    acts = np.random.default_rng(0).normal(size=(4, 1, 1, 3)).astype(np.float32)
    acts[3, 0, 0, 1] = np.nan
    sizes = write(tmp_path / "nan", acts, 2)
    with pytest.raises(
        ValueError, match=r"shard-00001.npy: activations of image 1 of this shard are not finite"
    ):
        measure(tmp_path / "nan", sizes, "float32")


def test_unfinished_and_damaged_stores_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no finished activation store; run launch.extract"):
        ActivationStore.open(tmp_path / "nothing")
    acts = np.zeros((4, 1, 1, 3), np.float32)
    write(tmp_path, acts, 2)
    artifacts.write_array(tmp_path / store.shard_name(1), acts[:1])
    with pytest.raises(ValueError, match=r"shard-00001.npy has shape \(1, 1, 1, 3\).*it is damaged"):
        ActivationStore.open(tmp_path).read(0, 4)


@pytest.mark.parametrize("how", ["read", "stored_vectors"])
@pytest.mark.parametrize("kind", ["flipped", "halved"])
def test_a_changed_shard_is_found_however_it_is_read(tmp_path, kind, how):
    write(tmp_path, np.random.default_rng(0).normal(size=(7, 2, 2, 3)).astype(np.float32), 3)
    path = tmp_path / store.shard_name(1)
    data, middle = path.read_bytes(), path.stat().st_size // 2 + 64
    path.write_bytes(
        data[:middle] + (b"" if kind == "halved" else bytes([data[middle] ^ 1]) + data[middle + 1 :])
    )
    with pytest.raises(digests.Damaged, match=r"shard-00001.npy is damaged"):
        getattr(ActivationStore.open(tmp_path), how)(0, 5)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder that passes for a remote one; `fetched` are the names of the files opened in it."""
    monkeypatch.setattr(paths, "is_remote", lambda path: "/bucket/" in f"{path}/")
    monkeypatch.setenv("JSAE_CACHE", str(tmp_path / "cache"))
    fetch, fetched = local_copy._fetch, []
    monkeypatch.setattr(
        local_copy, "_fetch", lambda path, copy: (fetched.append(path.name), fetch(path, copy))
    )
    folder = epath.Path(tmp_path / "bucket" / "train")
    folder.fetched = fetched
    return folder


def test_shards_of_a_remote_store_are_copied_once_a_host(bucket, tmp_path):
    acts = np.random.default_rng(0).normal(size=(5, 2, 2, 3)).astype(np.float32)
    sizes = write(bucket, acts, 3)
    measure(bucket, sizes, "float32")
    for _ in range(2):  # two processes of a host
        opened = ActivationStore.open(bucket)
        np.testing.assert_array_equal(opened.read(0, 5), acts)
        np.testing.assert_array_equal(opened.stored_vectors(3, 17), acts.reshape(-1, 3)[3:17])
        assert all(isinstance(shard, np.memmap) for shard in opened._shards)
        assert all(tmp_path / "cache" in path.parents for path, *_ in opened._files)
    assert bucket.fetched == ["shard-00000.npy", "shard-00001.npy"]
    write(bucket, acts + 1, 3)  # other content in the same place
    np.testing.assert_array_equal(ActivationStore.open(bucket).read(0, 5), acts + 1)
    assert len(list((tmp_path / "cache" / "remote").glob("*.npy"))) == 2, "the old copies stay"


def test_a_damaged_copy_is_made_again_and_a_damaged_shard_is_told(bucket, tmp_path):
    acts = np.zeros((2, 1, 1, 4), np.float32)
    write(bucket, acts, 2)
    ActivationStore.open(bucket).read(0, 2)
    (copy,) = (tmp_path / "cache" / "remote").glob("*.npy")
    copy.write_bytes(b"x" * copy.stat().st_size)
    np.testing.assert_array_equal(ActivationStore.open(bucket).read(0, 2), acts)
    assert len(bucket.fetched) == 2
    shard = bucket / "shard-00000.npy"
    shard.write_bytes(b"y" + shard.read_bytes()[1:])
    copy.unlink()
    with pytest.raises(digests.Damaged, match=r"train/shard-00000.npy is damaged"):
        ActivationStore.open(bucket).read(0, 2)
    assert not list((tmp_path / "cache" / "remote").glob("*.npy"))


def test_a_cache_without_room_for_the_copies_is_named(bucket, tmp_path, monkeypatch):
    write(bucket, np.zeros((2, 1, 1, 4), np.float32), 2)

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(local_copy.shutil, "copyfileobj", full)
    with pytest.raises(
        disks.NoRoom, match=r"the disk of .*cache/remote is full .for a copy of .*data.cache_dir"
    ):
        ActivationStore.open(bucket).read(0, 2)
    assert [p.suffix for p in (tmp_path / "cache" / "remote").iterdir()] == [".lock"]


def test_a_remote_file_comes_over_the_network_once(bucket, monkeypatch):
    artifacts.write_json(bucket / "x.json", {"a": 1}, checked=True)
    monkeypatch.setattr(digests, "of_file", lambda path: pytest.fail("read for its checksum alone"))
    assert artifacts.read_json(bucket / "x.json") == {"a": 1}
    (bucket / "x.json").write_text("{}")
    with pytest.raises(digests.Damaged, match=r"x.json is damaged"):
        artifacts.read_bytes(bucket / "x.json")
