"""One run of the pipeline that a fault hits: started, watched line by line, and what it said and cost.

`run` starts one process, `run_together` several that make one run, on loopback.
"""

import atexit
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time

from launch.faults import topologies

ROOT = pathlib.Path(__file__).parents[2]
MODULE = "launch.pipeline"
ALL_S = 900.0  # a run that takes longer hangs

_SETTINGS = {  # every stage in a second or two, with several shards, checkpoints and evaluations
    "data": "image_size=32 n_train=160 n_val=32 n_test=64",
    "classifier": "stem_stride=2 depths=(0,0,0,1) dims=(8,8,16,32) n_epochs=4 batch_size=32 "
    "log_every_steps=1 eval_every_steps=10 save_every_steps=4",
    "activations": "images_per_shard=32 batch_size=32",
    "sae": "n_features=64 topk.k=4 n_epochs=8 batch_size=64 steps_per_dispatch=4 "
    "save_every_steps=16 log_every_steps=4 eval_every_steps=20",
    "analysis": "batch_size=32 n_permutations=4",
    "ablation": "n_features=4 max_images=4 batch_size=32 n_bootstrap=20 n_joint=4 "
    "counterfactual.n_train=4 counterfactual.n_test=4",
    "report": "n_features=4",
}
TINY = (
    "--config=configs/demo.py:small",
    *(f"--config.{stage}.{word}" for stage, words in _SETTINGS.items() for word in words.split()),
)
TOGETHER = (  # the same with less to compile, for several processes compile again in every run
    *(flag for flag in TINY if ".dims=" not in flag),
    "--config.classifier.dims=(4,4,4,8)",
)

_TOGETHER = {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "1",
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    "JSAE_GRACE_S": "120",  # on a busy machine a step may take long
    "JSAE_HEARTBEAT_S": "20",  # the time after which one that was killed is missed at the latest
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
      code: its exit code, negative for the signal that killed it.
      lines: what it said on stderr.
      times_s: when it said so, seconds from its start.
      seconds: how long it lived.
      struck_s: when the fault hit it, seconds from its start; None if it did not.
    """

    code: int
    lines: list[str]
    times_s: list[float]
    seconds: float
    struck_s: float | None

    def says(self, *words: str) -> bool:
        """Whether one line holds all the words."""
        return any(all(word in line for word in words) for line in self.lines)

    def time_of(self, text: str) -> float:
        """When the first line that holds `text` was said. Raises ValueError if there is none."""
        for line, time_s in zip(self.lines, self.times_s, strict=True):
            if text in line:
                return time_s
        raise ValueError(f"the run never said {text!r}; it ended with {self.code}: {self.lines[-3:]}")


def run(
    workdir,
    settings=TINY,
    *,
    fail: str = "",
    strike=None,
    whole: bool = False,
    environment=None,
    module: str = MODULE,
    server: int = 0,
) -> Outcome:
    """Run launch.pipeline to its end.

    Args:
      workdir: the study's folder.
      settings: flags of the pipeline.
      fail: an ACTION@POINT#N of launch.faults.points.
      strike: (text, seconds, signal): so long after the first line with this text (after the start, for "") a
        signal is sent to the run.
      whole: start Python again instead of a fork of one that has imported the libraries.
      environment: instead of that of this process.
      module: another script of launch.
      server: the fork server to use; each has one run at a time.
    """
    environment = dict(os.environ if environment is None else environment)
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")]).rstrip(":")
    start = _start_whole if whole else functools.partial(_start_forked, server)
    began_s = time.monotonic()
    argv = [f"--workdir={workdir}", *settings]
    if fail:
        module, argv = "launch.faults.points", [fail, module, *argv]
    pid, stderr, wait = start(module, argv, environment)
    said: queue.Queue = queue.Queue()
    threading.Thread(target=_read, args=(stderr, said), daemon=True).start()
    text, delay_s, number = strike or (None, 0.0, 0)
    due_s = began_s + delay_s if text == "" else None
    lines, times_s, struck_s = [], [], None
    while True:
        if due_s is not None and time.monotonic() >= due_s:
            due_s, text = None, None
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.kill(pid, number)
                struck_s = time.monotonic()
        if time.monotonic() - began_s > ALL_S:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            line, at_s = said.get(timeout=1.0 if due_s is None else max(0.0, due_s - time.monotonic()))
        except queue.Empty:
            continue
        if line is None:
            break
        lines.append(line)
        times_s.append(at_s - began_s)
        if line.startswith("failpoint ") and not line.endswith(": trace"):
            struck_s = at_s
        if text and due_s is None and text in line:
            due_s = at_s + delay_s
    code = wait()
    ended_s = time.monotonic()
    return Outcome(code, lines, times_s, ended_s - began_s, None if struck_s is None else struck_s - began_s)


def run_together(
    workdir,
    settings=TOGETHER,
    *,
    n: int = 2,
    of: int | None = 0,
    fail: str = "",
    strike=None,
    module: str = MODULE,
) -> list[Outcome]:
    """Run launch.pipeline as `n` processes to their ends; `fail` and `strike` hit `of`, None: all."""

    def one(address: str, index: int) -> Outcome:
        joined = {"JSAE_COORDINATOR": address, "JSAE_NUM_PROCESSES": str(n), "JSAE_PROCESS_ID": str(index)}
        environment = os.environ | _TOGETHER | joined
        fault = {"fail": fail, "strike": strike} if of in (index, None) else {}
        how = {"environment": environment, "module": module, "server": index}
        return run(workdir, settings, **how, **fault)

    with topologies.coordinator() as address, concurrent.futures.ThreadPoolExecutor(n) as pool:
        return list(pool.map(functools.partial(one, address), range(n)))


def _start_whole(module: str, argv: list[str], environment: dict):
    process = subprocess.Popen(
        [sys.executable, "-m", module, *argv],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    return process.pid, process.stderr, process.wait


def _start_forked(number: int, module: str, argv: list[str], environment: dict):
    server, folder = _server(number)
    fifo = folder / "stderr"
    fifo.unlink(missing_ok=True)
    os.mkfifo(fifo)
    request = {"module": module, "argv": argv, "env": environment, "stderr": str(fifo)}
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    pid = int(server.stdout.readline())
    return pid, open(fifo, errors="replace"), lambda: int(server.stdout.readline())


@functools.cache
def _server(number: int):
    """A fork server, started once, and a folder for its pipes; both go when this process ends."""
    folder = tempfile.TemporaryDirectory(prefix="jsae-faults-")
    server = subprocess.Popen(
        [sys.executable, "-m", "launch.faults.server"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def end():
        server.stdin.close()
        server.wait()
        server.stdout.close()
        folder.cleanup()

    atexit.register(end)
    return server, pathlib.Path(folder.name)


def _read(stream, said: queue.Queue) -> None:
    with stream:
        for line in stream:
            said.put((line.rstrip("\n"), time.monotonic()))
    said.put((None, time.monotonic()))
