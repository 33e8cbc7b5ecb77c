"""How fast the hot paths are here: `python -m launch.benchmark [--only=SECTION] [--out=FILE]`.

    classifier   images/s of ConvNeXt forward and training (forward and all gradients, no optimizer), float32,
                 100 classes; beside it the same network with the depthwise convolution by lax.conv ("plain")
    data         images/s decoding photos each time, and from the decoded cache (needs --data_dir); those of
                 augmentation on the device (crop, flip, TrivialAugment), and of the same crop, flip and a
                 rotation, inversion or smoothing of each image by OpenCV in one thread of the host
    sae          vectors/s of whole SAE training steps, and of the encoder's product alone; with --only=sae
                 also growth with F and k, and streaming beside a resident store (launch/benchmark_sae.py)
    atlas        closed-form ablations/s, one a (feature, image) pair, reduced to moments over images: 256
                 images, 6,144 features, 768 channels, 100 classes, random numbers, every feature active; for
                 one target class (the label) and for all three; with --workdir=W also how near to the patched
                 forward pass the closed form is in that study, and how long the study's pass takes

Variants alternate round by round and medians are reported, since a machine's speed drifts. With --peers=DIR
(a folder with convnext_peers.sh ARCH SIZE BATCH and sae_peers.sh C F K N, printing JSON lines) other people's
code takes its turn too.
"""

import json
import os
import pathlib
import statistics
import subprocess
import time
from unittest import mock

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from jsae.classifier import convnext, depthwise
from jsae.data import augment, cache, decode, pipeline
from jsae.runtime import allocator
from launch import benchmark_atlas, benchmark_sae, usage

SECTIONS = ("classifier", "data", "sae", "atlas")
NETWORKS = {"atto_96_b32": ("atto", 96, 32), "tiny_224_b8": ("tiny", 224, 8)}
N_CLASSES = 100

_ONLY = flags.DEFINE_enum("only", None, SECTIONS, "Run one section.")
_OUT = flags.DEFINE_string("out", None, "Write the numbers as JSON to this file.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds; each variant runs once in each.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ("float32", "bfloat16"), "Of the classifier's computation.")
_PEERS = flags.DEFINE_string("peers", None, "Folder of scripts that time other people's code.")
_WORKDIR = flags.DEFINE_string("workdir", None, "A finished study of the final site, for the section atlas.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Photos in FGVC layout, for the section data.")


def alternate(variants: dict, n_items: int, rounds: int) -> dict:
    """Items a second of every variant: the median over rounds, in each of which every variant runs once.

    `variants` maps a name to a function that does `n_items` and returns what has to be waited for.
    """
    seconds = {name: [] for name in variants}
    for run in variants.values():
        jax.block_until_ready(run())
    for _ in range(rounds):
        for name, run in variants.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    return {name: n_items / statistics.median(times) for name, times in seconds.items()}


def classifier_rates(arch: str, size: int, batch: int, rounds: int, dtype: str, peers: str | None) -> dict:
    """Images/s, compile seconds and memory of one network, and images/s of peers."""
    params = jax.jit(
        lambda key: convnext.init(key, convnext.make_arch(arch, N_CLASSES), kernels="fan_in", layer_scale=0.1)
    )(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (batch, size, size, 3), dtype)
    labels = jnp.arange(batch) % N_CLASSES

    def forward(params, images):
        return convnext.apply(params, images)[0]

    def train(params, images):
        def loss(variables):
            logits = forward(convnext.Params(variables, params.arch), images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        return jax.value_and_grad(loss)(params.variables)

    row, variants = {}, {}
    for name, function, convolution in (
        ("forward", forward, convnext.depthwise),
        ("train", train, convnext.depthwise),
        ("plain_forward", forward, depthwise.conv),
        ("plain_train", train, depthwise.conv),
    ):
        with mock.patch.object(convnext, "depthwise", convolution):
            start = time.perf_counter()
            compiled = jax.jit(lambda *args, f=function: f(*args)).lower(params, images).compile()
            row[f"{name}_compile_s"] = time.perf_counter() - start
        memory = compiled.memory_analysis()
        if memory is not None:
            used = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
            row[f"{name}_peak_mib"] = used / 2**20
        variants[name] = lambda compiled=compiled: compiled(params, images)
    flops = compiled.cost_analysis()
    row["plain_train_gflops_per_image"] = flops["flops"] / batch / 1e9 if flops else None
    found, theirs = [], []
    for _ in range(rounds):
        found.append(alternate(variants, batch, 1))
        if peers:
            theirs += _peer_rows(peers, "convnext_peers.sh", arch, size, batch)
    for name in variants:
        row[f"{name}_images_per_s"] = statistics.median(rates[name] for rates in found)
    for key in ("forward", "train") if theirs else ():
        by_layout = {}
        for their in theirs:
            by_layout.setdefault(their["layout"], []).append(their[f"{key}_images_per_s"])
        layout, rates = max(by_layout.items(), key=lambda item: statistics.median(item[1]))
        row[f"timm_{key}_images_per_s"] = statistics.median(rates)
        row[f"timm_{key}_layout"] = layout
        row[f"{key}_over_timm"] = row[f"{key}_images_per_s"] / statistics.median(rates)
    row["train_over_plain"] = row["train_images_per_s"] / row["plain_train_images_per_s"]
    return row


def _peer_rows(folder: str, script: str, *arguments) -> list[dict]:
    command = [os.path.join(folder, script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def data_rates(data_dir: str, rounds: int, image_size: int = 96, batch: int = 32, n: int = 512) -> dict:
    """Images/s by decoding files one after the other, and by batches from the cache."""
    start = time.perf_counter()
    split = cache.load_splits(kind="fgvc_aircraft", dir=data_dir, image_size=image_size)["train"]
    opening_s = time.perf_counter() - start
    paths = sorted(pathlib.Path(data_dir).rglob("*.jpg"))[:n]

    def decode_files():
        return [
            decode.fit_square(decode.decode_rgb(path.read_bytes()), image_size, "squash") for path in paths
        ]

    def read_batches():
        batches = pipeline.train_batches(split, seed=0, batch_size=batch)
        return [next(batches)["image"][0, 0, 0, 0] for _ in range(len(paths) // batch)]

    rates = alternate({"decoded": decode_files, "cached": read_batches}, len(paths), rounds)
    images = np.asarray(split.images[:batch])
    index = np.arange(batch)
    augmenting = {}
    for name, strength in (("crop_flip", 0.0), ("crop_flip_trivial", 0.5)):
        on_device = jax.jit(lambda k, x, i, s=strength: augment.augment(k, x, i, crop="resized", trivial=s))
        augmenting[f"{name}_device"] = lambda f=on_device: f(jax.random.key(0), images, index)
        augmenting[f"{name}_opencv"] = lambda s=strength: _augment_by_opencv(images, s > 0)
    augmented = alternate(augmenting, batch, 4 * rounds)
    return {
        "augmented_images_per_s": augmented,
        "decoded_images_per_s": rates["decoded"],
        "cached_images_per_s": rates["cached"],
        "image_size": image_size,
        "first_file_px": list(decode.decode_rgb(paths[0].read_bytes()).shape[:2]),
        "opening_the_cache_s": opening_s,
    }


def _augment_by_opencv(images, change: bool):
    """What a loader's thread would do, for its time only: the draws are not those of `augment`."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    size = images.shape[1]
    out = np.empty(images.shape, np.float32)
    for i, image in enumerate(images):
        side = int(size * rng.uniform(0.6, 1))
        y, x = rng.integers(0, size - side + 1, 2)
        image = cv2.resize(image[y : y + side, x : x + side], (size, size))
        image = np.ascontiguousarray(image[:, ::-1]) if rng.random() < 0.5 else image
        if change and i % 3 == 0:
            turn = cv2.getRotationMatrix2D((size / 2, size / 2), float(rng.uniform(-60, 60)), 1)
            image = cv2.warpAffine(image, turn, (size, size))
        elif change and i % 3 == 1:
            image = cv2.LUT(image, np.arange(256, dtype=np.uint8)[::-1].copy())
        elif change:
            image = cv2.blur(image, (3, 3))
        out[i] = (image / 255.0 - 0.45) / 0.22
    return out


def _sae_peers(c: int = 768, f: int = 6144, k: int = 32, n: int = 4096) -> list[dict]:
    return _peer_rows(_PEERS.value, "sae_peers.sh", c, f, k, n) if _PEERS.value else []


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    allocator.keep_freed_memory()
    device = jax.devices()[0]
    results = {
        "device": {"kind": device.device_kind, "count": jax.device_count(), "cores": os.cpu_count()},
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
        "rounds": _ROUNDS.value,
    }
    sections = [_ONLY.value] if _ONLY.value else list(SECTIONS)
    if "classifier" in sections:
        results["classifier"] = {"dtype": _DTYPE.value}
        for name, network in NETWORKS.items():
            row = classifier_rates(*network, _ROUNDS.value, _DTYPE.value, _PEERS.value)
            results["classifier"][name] = row
            _print(f"classifier.{name}", row)
    if "data" in sections:
        if _DATA_DIR.value:
            results["data"] = data_rates(_DATA_DIR.value, _ROUNDS.value)
            _print("data", results["data"])
        elif _ONLY.value:
            raise app.UsageError("--only=data needs --data_dir")
        else:
            print("data: left out, needs --data_dir")
    if "sae" in sections:
        _sae_peers(32, 64, 4, 128)  # a peer that cannot run shall say so now, not after minutes
        results["sae"] = benchmark_sae.rates(alternate, _ROUNDS.value, _sae_peers)
        _print("sae", results["sae"])
        for name, measure in (
            ("growth", lambda: benchmark_sae.growth(alternate, min(3, _ROUNDS.value))),
            ("stream", lambda: benchmark_sae.stream(min(3, _ROUNDS.value))),
        ):
            if _ONLY.value:  # minutes; not part of the short table
                results["sae"][name] = measure()
                _print(f"sae.{name}", results["sae"][name])
    if "atlas" in sections:
        results["atlas"] = benchmark_atlas.rates(alternate, _ROUNDS.value)
        if _WORKDIR.value:
            results["atlas"]["study"] = benchmark_atlas.study(_WORKDIR.value, _ROUNDS.value)
        _print("atlas", results["atlas"])
    if _OUT.value:
        pathlib.Path(_OUT.value).write_text(json.dumps(results, indent=2) + "\n")
        print(f"written: {_OUT.value}")


def _print(title: str, row: dict) -> None:
    for key, value in row.items():
        if isinstance(value, dict):
            _print(f"{title}.{key}", value)
        else:
            print(f"{title}.{key}".ljust(60), f"{value:,.2f}" if isinstance(value, float) else value)


if __name__ == "__main__":
    usage.run(main)
