"""The streamed source: each vector once an epoch, the same order anywhere, bounded memory, errors."""

import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from jsae import sae
from jsae.activations import store
from jsae.runtime import artifacts, preemption, stages
from jsae.runtime import mesh as meshes
from jsae.runtime.context import RunContext
from jsae.sae import loop, memory, variants
from jsae.sae.batches import blocks, mixing, sources, streamed
from jsae.sae.run import run

C, GRID, IMAGES = 3, (2, 2), (250, 130, 320)  # 700 images, 2,800 vectors
N = 128
BUFFER_MIB = 64 * 10 * (C * 4 + 4) / 2**20  # ten rows of each block


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store whose vector i is (i, 2 i, 0.5), in three shards."""
    where, first = tmp_path_factory.mktemp("store"), 0
    for i, n in enumerate(IMAGES):
        number = np.arange(first, first + n * 4, dtype=np.float32)
        acts = np.stack([number, 2 * number, np.full_like(number, 0.5)], -1).reshape(n, *GRID, C)
        artifacts.write_array(where / store.shard_name(i), acts)
        first += n * 4
    manifest = {"site": "stage4", "grid": list(GRID), "n_channels": C, "n_images": sum(IMAGES)}
    manifest |= {
        "dtype": "float32",
        "shards": list(IMAGES),
        "class_names": ["a"],
        "mean": [0.0] * C,
        "scale": 1.0,
    }
    artifacts.write_json(where / "manifest.json", manifest)
    return where


def source_on(folder, n_devices=1, *, seed=0, last_step=200):
    mesh = meshes.make_mesh(devices=jax.devices()[:n_devices])
    opened = store.ActivationStore.open(folder)
    return streamed.Streamed(mesh, opened, N, buffer_mib=BUFFER_MIB, seed=seed, last_step=last_step)


def batch_of(source, step):
    """The real vectors of a step as the devices see them, in order."""
    window = source.at(step)
    constants = np.zeros(C, np.float32), np.float32(1)
    batch = blocks.take(window.x, window.mask, window.order, step - window.first, source.shape, *constants)
    return np.asarray(batch["x"])[np.asarray(batch["mask"]) > 0]


def epoch_of(source, epoch):
    steps = range(epoch * source.shape.steps_per_epoch, (epoch + 1) * source.shape.steps_per_epoch)
    batches = []
    for step in steps:
        batches.append(batch_of(source, step))
        source.done(step)  # the step before it
    return batches


def test_each_vector_comes_once_an_epoch_in_another_order_each_time(folder):
    source = source_on(folder)
    assert source.shape.n_windows > 3
    epochs = [epoch_of(source, epoch) for epoch in (0, 1)]
    for batches in epochs:
        vectors = np.concatenate(batches)
        np.testing.assert_array_equal(np.sort(vectors[:, 0]), np.arange(2800))
        np.testing.assert_array_equal(vectors[:, 1:], np.stack([2 * vectors[:, 0], np.full(2800, 0.5)], 1))
    per_window = source.shape.steps_per_window
    first_windows = [set(np.concatenate(batches[:per_window])[:, 0]) for batches in epochs]
    # Other images meet in a window each epoch: about one in n_windows of them by chance alone
    assert len(first_windows[0] & first_windows[1]) < 0.5 * len(first_windows[0])
    other = epoch_of(source_on(folder, seed=1), 0)
    assert not np.array_equal(np.concatenate(epochs[0]), np.concatenate(other))
    source.close()


def test_the_order_is_that_of_any_number_of_devices_and_of_a_run_that_starts_anywhere(folder):
    one, eight = source_on(folder), source_on(folder, 8)
    for step in (0, 7, one.shape.steps_per_epoch + 3, 2):  # straight to it, as a resumed run does
        expected = batch_of(one, step)
        np.testing.assert_array_equal(batch_of(eight, step), expected)
        numbers = one.numbers(step)
        np.testing.assert_array_equal(numbers[numbers >= 0], expected[:, 0])


def test_two_windows_at_most_are_there_and_the_next_is_read_ahead(folder, monkeypatch):
    source, loads = source_on(folder, last_step=12), []
    original = source._load
    monkeypatch.setattr(source, "_load", lambda number: loads.append(number) or original(number))
    per_window = source.shape.steps_per_window
    source.at(0)
    assert loads == [0]
    source.done(0)  # nothing is finished yet: the window before may still be in use
    assert loads == [0] and source._next is None
    source.done(1)
    source.done(2)
    source._next[1].result()
    assert loads == [0, 1]
    source.at(per_window)
    source.done(per_window)
    assert loads == [0, 1]
    last = (12 - 1) // per_window
    source.at(12 - 1)
    source.done(12)
    assert source._next is None and max(loads) == last  # nothing is read beyond the run
    source.close()


def test_a_step_holds_hardly_more_vectors_of_one_image_than_a_fair_draw(folder):
    source, labels = source_on(folder), np.arange(700) // 70  # classes follow each other in the store
    found = mixing.shares(source, labels, 4, seed=0)
    assert 2 / N <= found["ideal_image_share"] <= found["image_share"] <= 4 / N  # 4 of an image exist
    assert found["class_share"] < 1.5 * found["ideal_class_share"] < 0.3


def test_settings_that_hold_no_batch_are_refused(folder):
    opened = store.ActivationStore.open(folder)
    with pytest.raises(ValueError, match=r"sae.buffer_mib=0.001 .*0.0 MiB is the least"):
        streamed.plan(opened, N, 0.001, 0)
    with pytest.raises(ValueError, match="multiple of 64"):
        streamed.plan(opened, 100, 1.0, 0)


def test_a_short_store_is_streamed_too(tmp_path):
    """Fewer images than blocks: most blocks hold nothing but padding."""
    artifacts.write_array(tmp_path / store.shard_name(0), np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1))
    manifest = {
        "site": "s",
        "grid": [1, 1],
        "n_channels": 1,
        "n_images": 5,
        "dtype": "float32",
        "shards": [5],
    }
    artifacts.write_json(tmp_path / "manifest.json", manifest)
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    source = streamed.Streamed(
        mesh, store.ActivationStore.open(tmp_path), 64, buffer_mib=1.0, seed=0, last_step=9
    )
    assert source.shape.steps_per_epoch == 1
    numbers = source.numbers(4)
    assert sorted(numbers[numbers >= 0]) == [0, 1, 2, 3, 4]


def stop_in_report(monkeypatch, call):
    """A run is asked to stop when it writes the metrics of its call-th dispatch."""
    calls, original = [], loop._Reader._report

    def report(*args):
        calls.append(1)
        return original(*args)

    monkeypatch.setattr(loop._Reader, "_report", report)
    monkeypatch.setattr(RunContext, "requested_by_any", lambda self: len(calls) >= call)


def test_a_streamed_run_resumes_bit_for_bit(examples, tmp_path, monkeypatch):
    finals = []
    for name in ("whole", "stopped"):
        config, workdir = examples.small_config(), tmp_path / name
        config.sae.update(
            store="streamed", buffer_mib=64 * 4 * 68 / 2**20, n_epochs=3.0
        )  # two steps a window
        examples.make_activations(config, workdir)
        if name == "stopped":
            with monkeypatch.context() as patch:
                stop_in_report(patch, 4)
                with pytest.raises(preemption.Preempted):
                    run(config, workdir)
            assert artifacts.read_json(workdir / "sae" / "source.json")["store"] == "streamed"
        run(config, workdir)
        results = stages.results(config, workdir, "sae")
        assert results["store"] == "streamed"
        assert results["fvu"] < 1
        assert 0 < results["mixing"]["image_share"] < 0.1  # an image is in one block: 2 rows of it a step
        finals.append(sae.load(workdir / "sae"))
    jax.tree.map(np.testing.assert_array_equal, *finals)


PROGRAM = """
import re, sys
import jax, numpy as np
from jsae.activations import store
from jsae.runtime import mesh as meshes
from jsae.runtime.context import RunContext
from jsae.sae.batches import streamed
source = streamed.Streamed(meshes.make_mesh(), store.ActivationStore.open(sys.argv[1]), 4096,
    buffer_mib=4.0, seed=0, last_step=10**6)
use = jax.jit(lambda x, order: x.sum() + order.sum())
def anonymous_mib():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
seen = []
for step in range(3 * source.shape.steps_per_epoch):
    window = source.at(step)
    use(window.x, window.order).block_until_ready()
    source.done(step + 1)
    seen.append(anonymous_mib())
first = seen[source.shape.steps_per_epoch // 2]
print(source.shape.n_windows, source.shape.mib, first, max(seen))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_stays_flat_while_a_store_of_five_buffers_streams_by(clean_environment, tmp_path):
    images = 20 * 2**20 // (16 * 64 * 4)
    rng = np.random.default_rng(0)
    artifacts.write_array(
        tmp_path / store.shard_name(0), rng.normal(size=(images, 4, 4, 64)).astype(np.float32)
    )
    manifest = {"site": "s", "grid": [4, 4], "n_channels": 64, "n_images": images, "dtype": "float32"}
    artifacts.write_json(tmp_path / "manifest.json", manifest | {"shards": [images]})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env=clean_environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    n_windows, window_mib, early, most = map(float, done.stdout.split())
    assert n_windows >= 5 and window_mib <= 4
    # Two windows on the device and one on its way through the host; what leaked would be 60 MiB by the end
    assert most - early <= 3 * window_mib, done.stdout


def test_auto_streams_what_does_not_fit_and_a_run_keeps_its_source(folder, tmp_path, monkeypatch):
    opened, mesh = store.ActivationStore.open(folder), meshes.make_mesh(devices=jax.devices()[:1])
    settings = {"store": "auto", "variant": "topk", "n_features": 8, "k": 2, "batch_size": 64}
    c = types.SimpleNamespace(**settings, buffer_mib=BUFFER_MIB / 2, ema_decay=0.0)

    def choose(available):
        monkeypatch.setattr(memory, "of_device", lambda mesh: available)
        return sources.choose(mesh, opened, c, variants.TopK(k=2), tmp_path, 0)

    beside = memory.estimate(
        n_channels=C, n_features=8, batch_size=64, data=1, model=1, sparse=False, vector_bytes=0
    ).total
    resident_bytes = 2816 * (C * 4 + 4)  # 2,800 vectors in 64 blocks of 44 rows
    assert choose(2 * (beside + resident_bytes))[0] is False
    assert choose(None)[0] is False
    is_streamed, shape = choose(beside + 0.8 * resident_bytes)
    assert is_streamed and shape.n_windows > 1
    with pytest.raises(ValueError, match=r"lower sae\.buffer_mib"):
        choose(beside)
    sources.remember(tmp_path, True, "float32")
    assert choose(2 * (beside + resident_bytes))[0] is True  # as it was started, though it would fit now
