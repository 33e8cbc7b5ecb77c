"""One command in several processes that find each other on loopback."""

import concurrent.futures
import pathlib
import subprocess

from launch.faults import topologies

ROOT = pathlib.Path(__file__).parents[1]


def together(
    command: list[str], environment: dict[str, str], n: int = 2, n_devices: int = 1
) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each of n processes of n_devices; none outlives this call."""
    environment = environment | {"JAX_NUM_CPU_DEVICES": str(n_devices), "JSAE_NUM_PROCESSES": str(n)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    with topologies.coordinator() as address:
        processes = [
            subprocess.Popen(
                command, env=environment | {"JSAE_COORDINATOR": address, "JSAE_PROCESS_ID": str(i)}, **pipes
            )
            for i in range(n)
        ]
        try:  # all at once: a full pipe would stop its process, and the others wait for it
            with concurrent.futures.ThreadPoolExecutor(n) as pool:
                said = list(pool.map(lambda process: process.communicate(timeout=300), processes))
        finally:
            for process in processes:
                process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]
