"""What to measure first on a device that one has for ten minutes: `launch/device_check.sh`.

    python -m launch.benchmark.device --out=FILE.jsonl [--items=PATTERN] [--seconds=600] [--target=cpu]

Items run in the order below, the most telling first, each a JSON line of its own; started again, those with a
line are left out, and one that was cut off twice as well. --target=cpu runs all of them at tiny sizes, which
proves the script and measures nothing.

    rate_        bytes/s of a copy and operations/s of matrix products on this device
    depthwise_   the 7x7 convolution of each stage of tiny@224, forward and gradient, bfloat16;
                 plain_depthwise_ is XLA's grouped convolution
    top_k_       selections of k among F, in each form
    sae_k, sae_f sparse and dense training steps at growing F / k
    classifier_  the training step of tiny@224 as configs/fgvc_convnext_tiny.py has it; timm_ beside it, with
                 channels_last, torch.compile, autocast, fused AdamW and a mean of the weights, its images
                 augmented by nothing
    sae_n        training steps at N = 4,096 and 16,384, bfloat16; dictionary_learning_ beside them
    deterministic   whether two processes end with the same bits, with config.runtime.deterministic
    save_s       seconds of one checkpoint of an SAE with Adam's moments
    demo_bf16    seconds and headline numbers of configs/demo.py in bfloat16

Of programs a line has "ms" of one call or step, "compile_s", what hlo.py counts ("gb", "gflop", "launches"),
and "of_copy" and "of_product": bytes and operations per second as shares of the device's measured rates. Of
an item that could not run it has "error" or "left_out".
"""

import collections
import dataclasses
import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from jax import lax

from jsae.runtime import checkpoints, digests
from jsae.sae.variants import topk
from launch import usage
from launch.benchmark import classifier, hlo, programs

_OUT = flags.DEFINE_string("out", "device_check.jsonl", "File that a line is added to for each item.")
_ITEMS = flags.DEFINE_string("items", "", "A pattern in the items' names.")
_SECONDS = flags.DEFINE_float("seconds", 600.0, "No item is begun after so many seconds.")
_TARGET = flags.DEFINE_enum("target", "device", ("device", "cpu"), "cpu: tiny sizes on the CPU.")
_DIGEST = flags.DEFINE_bool("digest", False, "Print the digest of a short deterministic training, and end.")

FULL = programs.Sizes()
STEPS = 4  # of one dispatch


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large the items are."""

    sizes: programs.Sizes
    n_images: tuple[int, ...]
    by_k: tuple[tuple[int, int], ...]  # (F, k)
    side: int  # of the matrices and of the copy that the device's rates are taken from
    at_least_s: float  # that a program is run for

    @property
    def is_full(self) -> bool:
        return self.sizes == FULL


ON_DEVICE = Scale(FULL, (128, 256), ((6144, 128), (6144, 32), (6144, 8), (24576, 32)), 8192, 0.3)
TINY = Scale(programs.SMALL, (8,), ((64, 4),), 64, 0.0)


def items(scale: Scale) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """(name, what measures it) in order."""
    square = jax.ShapeDtypeStruct((scale.side, scale.side), jnp.bfloat16)
    yield "rate_copy", lambda: timed(scale, jax.jit(lambda x: x + 1), (square,))
    yield "rate_product_bf16", lambda: timed(scale, jax.jit(jnp.matmul), (square, square))
    yield from _depthwise(scale)
    yield from _selections(scale)
    for f, k in scale.by_k:
        sizes = dataclasses.replace(scale.sizes, n_features=f, k=k)
        for path in ("", "_sparse"):
            name = f"sae_topk{path}_n{sizes.vectors[0]}_bf16_1x1"
            yield f"sae_f{f}_k{k}{path or '_dense'}", functools.partial(_program, scale, sizes, name)
    for n in scale.n_images:
        sizes = dataclasses.replace(scale.sizes, n_images=n)
        name = f"classifier_step_{sizes.arch}{sizes.image_px}_b{n}_bf16_1x1"
        yield f"classifier_b{n}", functools.partial(_program, scale, sizes, name)
        yield f"timm_b{n}", functools.partial(_peer, "timm", scale, n)
    for n in scale.sizes.vectors:
        for variant in ("relu_l1", "topk", "batch_topk"):
            name = f"sae_{variant}_n{n}_bf16_1x1"
            yield f"sae_n{n}_{variant}", functools.partial(_program, scale, scale.sizes, name)
        yield f"dictionary_learning_n{n}", functools.partial(_peer, "dictionary_learning", scale, n)
    yield "deterministic", functools.partial(_deterministic, scale)
    yield "save_s", functools.partial(_save, scale)
    yield "demo_bf16", functools.partial(_demo, scale)


def timed(
    scale: Scale, function: Any, arguments: tuple, steps: int = 1, threads: bool = False
) -> dict[str, Any]:
    """Times and counts of a jitted function.

    Args:
      scale: says how long it is run.
      function: jitted.
      arguments: abstract; positive random numbers and zeros are made for them.
      steps: of one call.
      threads: the first output goes in as the first argument of the next call, as a donated state must.
    """
    start = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    row: dict[str, Any] = {"compile_s": time.perf_counter() - start}
    counts, held = hlo.count(compiled.as_text()), list(_filled(arguments))
    if steps > 1:
        held[-1] = jax.device_put(jnp.int32(steps), held[-1].sharding)

    def run() -> Any:
        out = compiled(*held)
        if threads:
            held[0] = out[0]
        return out

    row["ms"] = 1e3 * seconds_of(run, scale.at_least_s) / steps
    return row | {
        "gb": counts.bytes / 1e9,
        "gflop": sum(counts.flops.values()) / 1e9,
        "launches": counts.launches,
    }


def seconds_of(run: Callable[[], Any], at_least_s: float) -> float:
    """Seconds of one call, of as many one behind the other as take `at_least_s`; compiled before."""
    jax.block_until_ready(run())
    n = 1
    while True:
        start = time.perf_counter()
        for _ in range(n):
            out = run()
        jax.block_until_ready(out)
        took = time.perf_counter() - start
        if took >= at_least_s or n >= 1024:
            return took / n
        n *= 4


def _filled(arguments: tuple) -> tuple:
    """Arrays for abstract arguments: positive random numbers, zeros for whole numbers, keys."""

    def fill(leaf: Any) -> jax.Array:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.key(0), leaf.shape) if leaf.shape else jax.random.key(0)
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return 0.02 * jnp.abs(jax.random.normal(jax.random.key(1), leaf.shape, leaf.dtype))
        return jnp.zeros(leaf.shape, leaf.dtype)

    def place(leaf: Any) -> Any:
        return jax.jit(fill, static_argnums=0, out_shardings=leaf.sharding)(_Shape(leaf.shape, leaf.dtype))

    return jax.tree.map(place, arguments)


_Shape = collections.namedtuple("_Shape", ("shape", "dtype"))


def _program(scale: Scale, sizes: programs.Sizes, name: str) -> dict[str, Any]:
    """One program of the product."""
    function, arguments = programs.catalogue(sizes)[name](jax.devices())
    is_dispatch = name.startswith("sae_")
    row = timed(scale, function, arguments, steps=STEPS if is_dispatch else 1, threads=True)
    per_call = sizes.vectors[0] if is_dispatch else sizes.n_images
    if is_dispatch:
        per_call = int(name.split("_n")[1].split("_")[0])
    return row | {"items_per_s": per_call / row["ms"] * 1e3}


def _depthwise(scale: Scale) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    network, b = scale.sizes.network, scale.n_images[0]
    for site in network.sites:
        side, channels = network.grid(site, (scale.sizes.image_px,) * 2)[0], network.channels(site)
        if not re.fullmatch(r"stage\d", site):
            continue
        x = jax.ShapeDtypeStruct((b, side, side, channels), jnp.bfloat16)
        kernel = jax.ShapeDtypeStruct((7, 7, channels), jnp.bfloat16)
        for name, form in classifier.CONVOLUTIONS.items():
            loss = lambda x, k, form=form: form(x, k).astype(jnp.float32).sum()  # noqa: E731
            for what, f in {"forward": form, "gradient": jax.grad(loss, argnums=(0, 1))}.items():
                yield f"{name}_{site}_{what}", functools.partial(timed, scale, jax.jit(f), (x, kernel))


def _selections(scale: Scale) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    n, f, k = scale.sizes.vectors[0], scale.sizes.n_features, scale.sizes.k
    pre = jax.ShapeDtypeStruct((n, f), jnp.float32)
    forms = {
        "lax": lambda x, k: lax.top_k(x, k)[0],
        "keep_top": topk.keep_top,
        "approximate": lambda x, k: lax.approx_max_k(x, k)[0],
    }
    for name, form in forms.items():
        for count in dict.fromkeys((min(16, k), k, scale.sizes.acts[-1] // 2)):
            function = jax.jit(functools.partial(form, k=count))
            yield f"top_k_{name}_k{count}", functools.partial(timed, scale, function, (pre,))


def _peer(peer: str, scale: Scale, n: int) -> dict[str, Any]:
    """Other people's code in a process of its own, on the same device."""
    sizes = scale.sizes
    words = [peer, n, sizes.image_px, sizes.acts[-1], sizes.n_features, sizes.k, int(scale.is_full)]
    script = pathlib.Path(__file__).with_name("device_peers.py")
    done = subprocess.run(
        [sys.executable, str(script), *map(str, words)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"error": (done.stderr.strip() or "no message").splitlines()[-1][:500]}
    return json.loads(done.stdout.splitlines()[-1])


def _deterministic(scale: Scale) -> dict[str, Any]:
    """Whether two processes that train alike end alike."""
    command = [sys.executable, "-m", "launch.benchmark.device", "--digest", f"--target={_TARGET.value}"]
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.2",  # this process holds the rest
    }
    found = [
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()[
            -1
        ]
        for _ in range(2)
    ]
    return {"digests": found, "equal": found[0] == found[1]}


def digest(scale: Scale) -> str:
    """Of the state after some training steps of a deterministic run."""
    name = f"sae_topk_deterministic_n{scale.sizes.vectors[0]}_bf16_1x1"
    function, arguments = programs.catalogue(scale.sizes)[name](jax.devices())
    held = list(_filled(arguments))
    held[-1] = jax.device_put(jnp.int32(STEPS), held[-1].sharding)
    for _ in range(8):
        held[0], _metrics = function(*held)
    leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(held[0]))}
    return digests.of_bytes(np.asarray(digests.of_tree(leaves)).tobytes())


def _save(scale: Scale) -> dict[str, Any]:
    name = f"sae_topk_n{scale.sizes.vectors[0]}_f32_1x1"
    _, (abstract, *_) = programs.catalogue(scale.sizes)[name](jax.devices())
    state = _filled((abstract,))[0]
    with tempfile.TemporaryDirectory() as folder:
        saved = checkpoints.Checkpoints(folder)
        seconds = []
        for step in (1, 2):  # the first makes folders and compiles
            start = time.perf_counter()
            saved.save(step, state)
            returned = time.perf_counter() - start
            saved.wait()
            seconds.append({"returned_s": returned, "written_s": time.perf_counter() - start})
        saved.close()
    return seconds[-1] | {"mib": sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 2**20}


def _demo(scale: Scale) -> dict[str, Any]:
    form = "" if scale.is_full else ":small"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "launch.pipeline", f"--config=configs/demo.py{form}"]
        command += [f"--workdir={folder}", "--config.classifier.dtype=bfloat16"]
        command += ["--config.sae.precision=bfloat16"]
        start = time.perf_counter()
        environment = os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            return {"error": done.stderr.strip().splitlines()[-1][:500]}
        row: dict[str, Any] = {"seconds": time.perf_counter() - start}
        for stage, names in {"classifier": ("test_accuracy",), "sae": ("fvu", "l0", "vectors_per_s")}.items():
            results = json.loads((pathlib.Path(folder) / stage / "manifest.json").read_text())["results"]
            row |= {name: results[name] for name in names}
    return row


def run(scale: Scale, out: pathlib.Path, pattern: str, seconds: float) -> list[dict[str, Any]]:
    """Measure the items that `out` has no line of; all lines of the file."""
    begun = time.monotonic()
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {line["item"] for line in lines if "started" not in line}
    tries = collections.Counter(line["item"] for line in lines if "started" in line)
    rates = {line["item"]: line for line in lines if line["item"].startswith("rate_")}

    def write(row: dict[str, Any]) -> None:
        lines.append(row)
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")

    for name, measure in items(scale):
        if name in done or tries[name] > 1 or not re.search(pattern, name):
            continue
        if time.monotonic() - begun > seconds:
            break
        write({"item": name, "started": time.time(), "device": jax.devices()[0].device_kind})
        try:
            row = measure()
        except Exception as error:  # one form that fails must not keep the others from being measured
            row = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:500]}
        if name.startswith("rate_"):
            rates[name] = row
        row = {"item": name} | row | _shares(row, rates)
        write(row)
        print(json.dumps(row), flush=True)
    return lines


def _shares(row: dict[str, Any], rates: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Bytes and operations per second as shares of those measured on this device."""
    found = {}
    for key, of, name in (("gb", "of_copy", "rate_copy"), ("gflop", "of_product", "rate_product_bf16")):
        rate = rates.get(name, {})
        if "ms" in row and key in row and "ms" in rate:
            found[of] = (row[key] / row["ms"]) / (rate[key] / rate["ms"])
    return found


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}")
    logging.set_verbosity(logging.WARNING)  # orbax tells of every file
    scale = ON_DEVICE
    if _TARGET.value == "cpu":
        jax.config.update("jax_platforms", "cpu")
        scale = TINY
    if _DIGEST.value:
        print(digest(scale))
        return
    run(scale, pathlib.Path(_OUT.value), _ITEMS.value, _SECONDS.value)


if __name__ == "__main__":
    usage.run(main)
