"""A checkout with stubs of everything that the shell scripts start, for the tests of them."""

import os
import shutil
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), ROOT / "launch" / "slurm.sbatch", ROOT / ".ci" / "run"])


ENTRY_PYTHON = """#!/usr/bin/env bash
line=$(printf '<%s>' "$@")
line+=" in $PWD"
for name in JSAE_{COORDINATOR,NUM_PROCESSES,PROCESS_ID,LOCAL_DEVICE_IDS}; do
    if [[ -v $name ]]; then line+=" $name=${!name}"; fi
done
echo "$line"
"""


def write_script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def make_checkout(tmp_path):
    """A checkout with spaces in its path, a stub environment, and stubs of the programs of a cluster."""
    repo = tmp_path / "a checkout"
    (repo / "configs").mkdir(parents=True)
    (repo / "launch").mkdir()
    for script in SCRIPTS:
        if script.parent.name == "launch":
            shutil.copy(script, repo / "launch")
    for name in ("pipeline", "train_sae"):
        (repo / "launch" / f"{name}.py").write_text("")
    (repo / "configs" / "x.py").write_text("")
    write_script(repo / "launch" / "venv.sh", '#!/usr/bin/env bash\necho "venv.sh $*" >&2\n')
    write_script(repo / ".venv" / "bin" / "python", ENTRY_PYTHON)
    print_words = '#!/usr/bin/env bash\nprintf "%s" "${0##*/}"; printf "<%s>" "$@"; echo\n'
    write_script(tmp_path / "bin" / "gcloud", print_words)
    write_script(tmp_path / "bin" / "nvidia-smi", '#!/usr/bin/env bash\necho "GPU 0: x"; echo "GPU 1: x"\n')
    write_script(
        tmp_path / "bin" / "scontrol",
        "#!/usr/bin/env bash\n"
        'if [[ $1 == show ]]; then printf "node1\\nnode2\\n"; else echo "scontrol $*"; fi\n',
    )
    # srun: its own options are left out, the rest runs once for each of the tasks.
    write_script(
        tmp_path / "bin" / "srun",
        "#!/usr/bin/env bash\nwhile [[ $1 == --* ]]; do shift; done\nstatus=0\n"
        'for i in 0 1 2 3; do SLURM_PROCID=$i SLURM_LOCALID=$((i % 2)) "$@" || status=$?; done\n'
        'exit "$status"\n',
    )
    return repo


def start(repo: Path, script: str, *words: str, cwd: Path | None = None, **env: str):
    """Runs launch/`script` of the copy with the stubs first on PATH, from the folder above it."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JSAE_", "SLURM_", "CUDA_"))}
    clean["PATH"] = f"{repo.parent / 'bin'}:{clean['PATH']}"
    return subprocess.run(
        [str(repo / "launch" / script), *words],
        cwd=cwd or repo.parent,
        env=clean | env,
        capture_output=True,
        text=True,
        timeout=60,
    )


def command(repo: Path, *, stage="pipeline", config=None, workdir: str) -> str:
    """The line that the stub environment prints for this pipeline command."""
    config = config or repo / "configs" / "x.py"
    return f"<-m><launch.{stage}><--config={config}><--workdir={workdir}>"


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return False
