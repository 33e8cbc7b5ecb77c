"""Variants timed in turns, since a machine's speed drifts; other people's code among them."""

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

import jax


def alternate(variants: dict[str, Callable[[], Any]], n_items: int, rounds: int) -> dict[str, float]:
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


def peer_rows(folder: str, script: str, *arguments: object) -> list[dict]:
    """Rows that a script of the folder prints as JSON lines. Raises RuntimeError if it fails."""
    command = [os.path.join(folder, script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
