"""Starts runs of the pipeline without paying for the imports of other people's libraries each time.

It has imported them, and nothing of jsae; each request forks a process that becomes one run, with its
environment, arguments and signal handlers, and ends as any Python program does. What jax reads from the
environment when it is imported is that of the server, but for the number of CPU devices. Requests and answers
are lines of JSON on stdin and stdout: {"module", "argv", "env", "stderr": path} -> pid, then the exit status.
"""

import importlib
import json
import os
import runpy
import sys

HEAVY = """
jax.numpy flax.linen optax orbax.checkpoint grain.python tensorflow_datasets pyarrow.parquet cv2 PIL.Image
scipy.stats safetensors.numpy jinja2 tqdm etils.epath absl.app ml_collections.config_flags
"""


def next_request() -> dict | None:
    """Serve requests; returns the request in each forked process, and None in the server at the end."""
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            return request
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    return None


def become(request: dict) -> None:
    """Run the module as if this process had been started with it."""
    os.environ.clear()
    os.environ.update(request["env"])
    jax = sys.modules["jax"]
    jax.config.update("jax_num_cpu_devices", int(os.environ.get("JAX_NUM_CPU_DEVICES", -1)))
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    os.dup2(os.open(request["stderr"], os.O_WRONLY), 2)
    sys.argv = [request["module"], *request["argv"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for name in HEAVY.split():
        importlib.import_module(name)
    request = next_request()
    if request is not None:
        become(request)
