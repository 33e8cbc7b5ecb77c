"""The section `compile` of the benchmark: the product's programs compiled for a device that is not there.

    python -m launch.benchmark --only=compile --target=h200 --programs='sae_topk.*1x1' --out=h200.json

    h200       one to eight of them on one host. Needs jax-cuda13-plugin and jax-cuda13-pjrt of jax's own
               version (launch/venv.sh cuda13) and ptxas; no GPU, driver or CUDA library
    v5e:2x4    or another slice. Needs libtpu (launch/venv.sh tpu, or TPU_LIBRARY_PATH)
    cpu        this machine; floor_ms is not known

A program that is in the --out file already is not compiled again: a classifier step takes minutes. Per device
and for one call, of a dispatch one step, what launch/benchmark/hlo.py counts in the optimised text:

    compiles, seconds      whether, and how long compiling took on this machine; "error" where not
    launches, gb, gflop    of gb what fused instructions read and write, of gflop products and convolutions
    sorts, scatter_loops   in all branches
    argument_mib, temporary_mib
    floor_ms               the larger of gb over the device's memory rate and gflop over its rate of products
                           so exact, both of its data sheet
    collectives            kind -> [how many, bytes]

An H200 that is not there picks no algorithms: products go to cuBLAS (on the device XLA also times Triton),
convolutions keep cuDNN's workspaces out of temporary_mib, and sorts may be XLA's own instead of CUB's.
"""

import json
import os
import pathlib
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import topologies

from launch import markdown
from launch.benchmark import hlo, programs
from launch.benchmark.peaks import PEAKS

MIB = 2**20


def devices(target: str) -> list[Any]:
    """Devices of a target, of which all but "cpu" can only be compiled for.

    Raises ValueError where the target is unknown or a package is missing; it says which.
    """
    if target == "cpu":
        return jax.devices("cpu")
    try:
        if target == "h200":
            config = (pathlib.Path(__file__).parent / "h200.txtpb").read_text()
            topology = topologies.get_topology_desc(platform="cuda", target_config=config, topology="1x1x8")
        elif target.partition(":")[0] in PEAKS:
            os.environ.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
            topology = topologies.get_topology_desc(target, platform="tpu")
        else:
            raise ValueError(f"--target={target} is unknown; expected h200, a slice such as v5e:2x4, or cpu")
    except (RuntimeError, NotImplementedError, FileNotFoundError) as error:
        needed = "jax-cuda13-plugin and jax-cuda13-pjrt" if target == "h200" else "libtpu"
        message = f"--target={target} needs {needed}, of versions that fit jax {jax.__version__}: {error}"
        raise ValueError(message) from error
    return list(topology.devices)


def rows(
    target: str, pattern: str, kept: dict[str, dict], save: Any, sizes: programs.Sizes
) -> dict[str, dict]:
    """{program: its numbers} of the programs whose names match, those of `kept` as they are.

    Args:
      target: as the module says.
      pattern: a regular expression, found anywhere in a name; "" for all.
      kept: from an earlier run; added to.
      save: called after each program, with all rows.
      sizes: of the programs.

    Raises ValueError if no name matches, listing them.
    """
    catalogue = programs.catalogue(sizes)
    names = [name for name in catalogue if re.search(pattern, name)]
    if not names:
        without_mesh = dict.fromkeys(name.rpartition("_")[0] for name in catalogue)
        meshes = ", ".join(f"_{mesh}" for mesh in programs.MESHES)
        raise ValueError(
            f"no program matches {pattern!r}; there are {', '.join(without_mesh)}, each with {meshes}"
        )
    found = devices(target)
    for name in names:
        if name not in kept:
            kept[name] = measure(catalogue[name], target, found, deterministic="_deterministic_" in name)
            save(kept)
            print(name, json.dumps(kept[name]), flush=True)
    return {name: kept[name] for name in names}


def measure(make: Any, target: str, on: list[Any], *, deterministic: bool = False) -> dict[str, Any]:
    """The numbers of one program; `deterministic` as XLA is told to be by config.runtime.deterministic."""
    start, options = time.monotonic(), {}
    if target == "h200":
        options = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_deterministic_ops": deterministic}
    try:
        function, arguments = make(on)
        compiled = function.lower(*arguments).compile(compiler_options=options or None)
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        lines = f"{type(error).__name__}: {error}".splitlines()
        return {"compiles": False, "seconds": time.monotonic() - start, "error": lines[0][:500]}
    seconds, counts, memory = (
        time.monotonic() - start,
        hlo.count(compiled.as_text()),
        compiled.memory_analysis(),
    )
    return {
        "compiles": True,
        "seconds": round(seconds, 1),
        "launches": counts.launches,
        "gb": counts.bytes / 1e9,
        "gflop": sum(counts.flops.values()) / 1e9,
        "sorts": counts.sorts,
        "scatter_loops": counts.scatter_loops,
        "argument_mib": memory.argument_size_in_bytes / MIB,
        "temporary_mib": memory.temp_size_in_bytes / MIB,
        "floor_ms": floor_ms(counts, target),
        "collectives": counts.collectives,
    }


def floor_ms(counts: hlo.Counts, target: str) -> float | None:
    """The least time by the device's data sheet; None for a device without one."""
    peak = PEAKS.get(target.partition(":")[0])
    if peak is None:
        return None
    products = sum(n / peak.flops_per_s[kind] for kind, n in counts.flops.items())
    return 1e3 * max(counts.bytes / peak.bytes_per_s, products)


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, one line per program."""
    lines = []
    for name, row in found.items():
        sent = row.get("collectives", {})
        lines.append(
            {"program": name}
            | {key: row.get(key, "") for key in ("seconds", "launches", "gb", "gflop", "sorts")}
            | {
                key: row.get(key, "")
                for key in ("scatter_loops", "argument_mib", "temporary_mib", "floor_ms")
            }
            | {"collectives": ", ".join(f"{n} {kind} {b / 1e6:.3g} MB" for kind, (n, b) in sent.items())}
            | ({} if row["compiles"] else {"collectives": row["error"]})
        )
    return markdown.table(lines, digits=3)


def run(target: str, pattern: str, out: str | None, sizes: programs.Sizes | None = None) -> None:
    """Compile and print the table; with `out` every program is kept there as soon as it is done."""
    jax.config.update("jax_platforms", "cpu")  # there is no other, and the CUDA plugin looks for libraries
    path = pathlib.Path(out) if out else None
    whole = json.loads(path.read_text()) if path and path.exists() else {}
    kept = whole.setdefault("compile", {}).setdefault(target, {})

    def save(_: dict) -> None:
        if path:
            partial = path.with_name(path.name + ".partial")
            partial.write_text(json.dumps(whole, indent=2) + "\n")
            partial.replace(path)

    print(table(rows(target, pattern, kept, save, sizes or programs.Sizes())))
