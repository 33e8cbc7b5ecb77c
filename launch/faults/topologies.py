"""The same study on 1, 2 and 4 processes, and SAEs that change their topology on the way; two tables.

    python -m launch.faults.topologies --workdir=W [--processes=1,2,4] [--devices=2] [-- --config.KEY=VALUE]

Processes find each other over jax.distributed on loopback, each with its CPU devices. Every study
starts from nothing in W/processes_N. Then the SAE of the first is trained again in W/change_I: stopped with
SIGTERM on one topology, gone on with on another, and compared with the run that nobody stopped.
Expected: fvu within 0.5% and accuracy within 0.5 points of one process.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from absl import flags

from launch import markdown, usage

PREEMPTED = 75
# (processes, model axis) before and after the stop
CHANGES = (((2, 1), (1, 1)), ((1, 1), (2, 2)), ((2, 4), (1, 2)))


def start(address: str, module: str, n_processes: int, n_devices: int, arguments) -> list[subprocess.Popen]:
    """Start a launch module in n processes that work together; `address` is that of a `coordinator`."""
    started = []
    for i in range(n_processes):
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(n_devices)}
        if n_processes > 1:
            environment |= {
                "JSAE_COORDINATOR": address,
                "JSAE_NUM_PROCESSES": str(n_processes),
                "JSAE_PROCESS_ID": str(i),
            }
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", module, *arguments], env=environment, stderr=subprocess.PIPE, text=True
            )
        )
    return started


@contextlib.contextmanager
def coordinator() -> Iterator[str]:
    """An address for jax's coordinator whose port nobody else is given meanwhile."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # which the coordinator's server sets too
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


def finish(processes, expected: int = 0) -> None:
    """Wait for all of them. Raises RuntimeError with the end of the log if one ends otherwise."""
    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:  # a full pipe would stop its process
        logs = list(pool.map(lambda process: process.communicate()[1], processes))
    for process, log in zip(processes, logs, strict=True):
        if process.returncode != expected:
            raise RuntimeError(f"a process ended with {process.returncode}, not {expected}:\n{log[-4000:]}")


def study(workdir: pathlib.Path, n_processes: int, n_devices: int, arguments) -> dict:
    """Run the whole pipeline; its row of the table."""
    began = time.monotonic()
    with coordinator() as address:
        command = [*arguments, f"--workdir={workdir}"]
        finish(start(address, "launch.pipeline", n_processes, n_devices, command))
    summary = json.loads((workdir / "summary.json").read_text())
    return {
        "processes x devices": f"{n_processes} x {n_devices}",
        "accuracy": summary["classifier"]["test_accuracy"],
        "fvu": summary["sae"]["fvu"],
        "l0": summary["sae"]["l0"],
        "rows of the logs": "once each" if is_written_once(workdir) else "TWICE",
        "seconds": time.monotonic() - began,
    }


def is_written_once(workdir: pathlib.Path) -> bool:
    """Whether no row of metrics.jsonl comes twice: one process writes."""
    for stage in ("classifier", "sae"):
        path = workdir / stage / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []  # a short run logs nothing
        kinds = [(row["step"], *sorted(row)) for row in map(json.loads, lines)]
        if len(kinds) != len(set(kinds)):
            return False
    return True


def changed(workdir: pathlib.Path, source: pathlib.Path, change, n_devices: int, arguments) -> dict:
    """Train the SAE of `source` again, on one topology and then on another; its row of the table."""
    shutil.copytree(source, workdir, ignore=lambda folder, names: {"sae", "analysis", "ablation", "report"})
    described = []
    for i, (n_processes, model) in enumerate(change):
        described.append(f"{n_processes} x {n_devices}, model {model}")
        command = [*arguments, f"--workdir={workdir}", f"--config.runtime.model_axis={model}"]
        with coordinator() as address:
            running = start(address, "launch.train_sae", n_processes, n_devices, command)
            if i == 0:
                wait_for(lambda: any((workdir / "sae" / "checkpoints").glob("[0-9]*")), running)
                for process in running:
                    process.send_signal(signal.SIGTERM)
            finish(running, PREEMPTED if i == 0 else 0)
    results = json.loads((workdir / "sae" / "manifest.json").read_text())["results"]
    return {"from": described[0], "to": described[1], "fvu": results["fvu"], "l0": results["l0"]}


def wait_for(condition, running) -> None:
    """Wait until the condition holds or a process has ended."""
    while not condition() and all(process.poll() is None for process in running):
        time.sleep(0.05)


def add_differences(rows: list[dict], reference: dict) -> None:
    """Beside each row, how far it is from the reference."""
    for row in rows:
        row["fvu off by"] = f"{abs(row['fvu'] / reference['fvu'] - 1):.3%}"
        if "accuracy" in row:
            row["accuracy off by"] = f"{100 * abs(row['accuracy'] - reference['accuracy']):.2f} points"


def define_flags() -> None:
    """The flags of this command; not where it is imported for its functions."""
    flags.DEFINE_string("workdir", None, "Folder for the studies.", required=True)
    flags.DEFINE_string("config", "configs/demo.py:small", "The experiment.")
    flags.DEFINE_list("processes", ["1", "2", "4"], "Numbers of processes; the first is compared with.")
    flags.DEFINE_integer("devices", 2, "Devices of each process.")
    flags.DEFINE_bool("changes", True, "Change topologies too.")


def main(argv: list[str]) -> None:
    workdir, n_devices = pathlib.Path(flags.FLAGS.workdir), flags.FLAGS.devices
    arguments = [f"--config={flags.FLAGS.config}", *argv[1:]]
    rows = [
        study(workdir / f"processes_{n}", n, n_devices, arguments) for n in map(int, flags.FLAGS.processes)
    ]
    add_differences(rows, rows[0])
    print(markdown.table(rows, digits=5) + "\n", flush=True)
    if not flags.FLAGS.changes:
        return
    first = workdir / f"processes_{flags.FLAGS.processes[0]}"
    often = [*arguments, "--config.sae.save_every_steps=10"]
    changes = [
        changed(workdir / f"change_{i}", first, change, n_devices, often) for i, change in enumerate(CHANGES)
    ]
    add_differences(changes, rows[0])
    print(markdown.table(changes, digits=5))


if __name__ == "__main__":
    define_flags()
    usage.run(main)
