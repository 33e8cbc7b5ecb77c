"""The shell scripts: what they run, and what they refuse.

No network is used: each script runs from a copy of launch/ whose environment is
a stub that prints its arguments and the JSAE_ variables; gcloud, srun and scontrol are stubs too.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), ROOT / "launch" / "slurm.sbatch", ROOT / ".ci" / "run"])
STARTED = [s for s in SCRIPTS if s.name not in ("arguments.sh", "run")]
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


@pytest.fixture
def repo(tmp_path):
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


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.name)
def test_parses(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK) == (script.name != "arguments.sh")
    assert script.name == "arguments.sh" or "set -euo pipefail" in script.read_text()


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not on PATH")
def test_shellcheck_finds_nothing():
    found = subprocess.run(["shellcheck", "-x", *map(str, SCRIPTS)], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("script", STARTED, ids=lambda s: s.name)
def test_help_names_every_key(script):
    shown = subprocess.run([str(script), "--help"], capture_output=True, text=True, check=True).stdout
    assert script.name in shown and "#" not in shown
    keys = re.search(r"^keys=\((.*)\)$", script.read_text(), re.MULTILINE)
    for key in keys.group(1).split() if keys else []:
        assert re.search(rf"^  {key} ", shown, re.MULTILINE), f"--help does not explain {key}"


@pytest.mark.parametrize("script", ["gpu.sh", "tpu_vm.sh", "slurm.sbatch"])
@pytest.mark.parametrize(
    "words, message",
    [
        (["CONFIG=configs/x.py", "WORKDIR=w", "LEARNING_RATE=1"], "unknown key 'LEARNING_RATE'"),
        (["CONFIG=configs/x.py", "WORKDIR=w", "w"], "'w' is not KEY=VALUE"),
        (["WORKDIR=w"], "CONFIG=configs/NAME.py is needed"),
        (["CONFIG=configs/x.py"], "WORKDIR=FOLDER is needed"),
        (["CONFIG=configs/none.py", "WORKDIR=w"], "is not a file"),
        (["CONFIG=configs/x.py", "WORKDIR=w", "STAGE=tune"], "is not one of: pipeline train_sae"),
        (
            ["CONFIG=configs/x.py", "WORKDIR=w", "ACCELERATOR=mps"],
            "is not one of: auto cuda12 cuda13 tpu none",
        ),
    ],
)
def test_bad_arguments(repo, script, words, message):
    done = start(repo, script, *words, cwd=repo, SLURM_JOB_ID="7")
    assert done.returncode == 2 and message in done.stderr
    if "KEY" in message or "key" in message:
        assert "Valid keys: CONFIG WORKDIR DATA_DIR STAGE ACCELERATOR" in done.stderr
    assert "venv.sh" not in done.stderr, "installs before the arguments are checked"


def test_demo_runs_the_pipeline_command(repo):
    done = start(repo, "demo.sh", "a study", "--config.sae.k=16")
    workdir = repo.parent / "a study"
    line = (
        f"<-m><launch.pipeline><--config=configs/demo.py><--workdir={workdir}><--config.sae.k=16> in {repo}\n"
    )
    assert done.stdout == line  # no JSAE_ variable either
    assert "venv.sh auto" in done.stderr and f"{workdir}/report/index.html" in done.stderr
    assert f"<--workdir={repo}/runs/demo>" in start(repo, "demo.sh").stdout
    assert "<--workdir=gs://b/w>" in start(repo, "demo.sh", "gs://b/w").stdout


def test_test_sh_lints_then_tests(repo):
    done = start(repo, "test.sh", "tests/sae", "-k", "top k")
    ran = [line.split(" in ")[0] for line in done.stdout.splitlines()]
    assert ran == [
        "<-m><ruff><check><.>",
        "<-m><ruff><format><--check><.>",
        "<-m><pytest><--numprocesses=auto><--maxprocesses=8><--dist=loadfile><--no-loadscope-reorder>"
        "<tests/sae><-k><top k>",
    ]
    write_script(repo / ".venv" / "bin" / "python", "#!/usr/bin/env bash\nexit 7\n")
    assert start(repo, "test.sh").returncode == 7
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith('/../launch/test.sh"')


def test_gpu_one_process(repo):
    done = start(repo, "gpu.sh", f"CONFIG={repo}/configs/x.py", "WORKDIR=w", "DATA_DIR=d", "--restart=sae")
    line = command(repo, workdir=f"{repo.parent}/w")
    assert done.stdout == f"{line}<--config.data.dir={repo.parent}/d><--restart=sae> in {repo}\n"
    assert "venv.sh auto" in done.stderr


def test_gpu_one_process_a_gpu(repo):
    words = [
        "CONFIG=configs/x.py",
        "WORKDIR=gs://b/w",
        "PROCESSES=all",
        "COORDINATOR=127.0.0.1:9",
        "STAGE=train_sae",
    ]
    done = start(repo, "gpu.sh", *words, cwd=repo)
    line = command(repo, stage="train_sae", workdir="gs://b/w") + f" in {repo} JSAE_COORDINATOR=127.0.0.1:9"
    expected = {f"{line} JSAE_NUM_PROCESSES=2 JSAE_PROCESS_ID={i} JSAE_LOCAL_DEVICE_IDS={i}" for i in (0, 1)}
    assert done.returncode == 0 and set(done.stdout.splitlines()) == expected


def test_gpu_deals_the_visible_devices(repo):
    words = ["CONFIG=configs/x.py", "WORKDIR=w", "PROCESSES=2", "COORDINATOR=h:1"]
    done = start(repo, "gpu.sh", *words, cwd=repo, CUDA_VISIBLE_DEVICES="4,5,6,7")
    assert sorted(re.findall(r"LOCAL_DEVICE_IDS=(\S+)", done.stdout)) == ["0,1", "2,3"]
    done = start(repo, "gpu.sh", *words, cwd=repo, CUDA_VISIBLE_DEVICES="4,5,6")
    assert done.returncode == 2 and "3 devices cannot be dealt evenly to 2 processes" in done.stderr


@pytest.mark.parametrize("code, tenths, others", [(3, 300, "told to stop"), (75, 7, "left to finish")])
def test_gpu_stops_the_others(repo, code, tenths, others):
    """Process 1 ends early; process 0 hears of it, unless it is already writing its checkpoint (75)."""
    write_script(
        repo / ".venv" / "bin" / "python",
        "#!/usr/bin/env bash\nif [[ $JSAE_PROCESS_ID == 1 ]]; then\n"
        f"until [[ -e ready ]]; do sleep 0.05; done; exit {code}; fi\n"
        "trap 'echo told to stop; exit 75' TERM\ntouch ready\n"
        f"for i in {{1..{tenths}}}; do sleep 0.1; done\necho left to finish\n",
    )
    words = ["CONFIG=configs/x.py", "WORKDIR=w", "PROCESSES=2", "COORDINATOR=h:1"]
    done = start(repo, "gpu.sh", *words, cwd=repo)
    assert done.returncode == code and done.stdout == f"{others}\n"


def test_gpu_kills_a_process_that_hangs(repo):
    write_script(
        repo / ".venv" / "bin" / "python",
        "#!/usr/bin/env bash\nif [[ $JSAE_PROCESS_ID == 1 ]]; then exit 3; fi\ntrap '' TERM\nexec sleep 30\n",
    )
    words = ["CONFIG=configs/x.py", "WORKDIR=w", "PROCESSES=2", "COORDINATOR=h:1", "GRACE_S=0"]
    assert start(repo, "gpu.sh", *words, cwd=repo).returncode == 3


def test_gpu_passes_a_signal_on_once(repo):
    write_script(
        repo / ".venv" / "bin" / "python",
        "#!/usr/bin/env bash\ntrap 'echo signal; exit 75' TERM\n"
        "echo ready\nfor i in {1..100}; do sleep 0.1; done\n",
    )
    words = ["CONFIG=configs/x.py", "WORKDIR=w", "PROCESSES=2", "COORDINATOR=h:1"]
    process = subprocess.Popen(
        [str(repo / "launch" / "gpu.sh"), *words], cwd=repo, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with process:
        assert [process.stdout.readline(), process.stdout.readline()] == [b"ready\n", b"ready\n"]
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b"signal\nsignal\n"
    assert process.returncode == 75


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_tpu_vm_here(repo):
    done = start(repo, "tpu_vm.sh", "CONFIG=configs/x.py", "WORKDIR=gs://b/w", cwd=repo)
    line = command(repo, workdir="gs://b/w")
    assert done.stdout == f"{line} in {repo} JSAE_COORDINATOR=auto\n" and "venv.sh tpu" in done.stderr
    done = start(repo, "tpu_vm.sh", "CONFIG=configs/x.py", "WORKDIR=gs://b/w", "COORDINATOR=none", cwd=repo)
    assert done.stdout == f"{line} in {repo}\n"


def test_tpu_vm_on_all_workers(repo):
    """The command given to gcloud, run by a shell in the checkout, is the one a worker runs by hand."""
    words = ["CONFIG=configs/x.py", "WORKDIR=gs://b/w", "DATA_DIR=/mnt/my data", "--restart=sae"]
    done = start(repo, "tpu_vm.sh", *words, "NAME=pod", "ZONE=z", "PROJECT=p", "REPO=a checkout")
    head = "gcloud<compute><tpus><tpu-vm><ssh><pod><--zone=z><--project=p><--worker=all><--command="
    assert done.stdout.startswith(head) and "venv.sh" not in done.stderr
    remote = done.stdout.removeprefix(head).removesuffix(">\n")
    ran = subprocess.run(["bash", "-c", remote], cwd=repo.parent, capture_output=True, text=True, check=True)
    log = repo / "runs" / "tpu_vm.log"
    assert ran.stdout == "" and f"writes {log}" in ran.stderr
    by_hand = start(repo, "tpu_vm.sh", *words, cwd=repo).stdout
    assert wait_for(lambda: log.read_text().endswith(by_hand)), log.read_text()
    done = start(repo, "tpu_vm.sh", *words, "NAME=pod")
    assert done.returncode == 2 and "needs ZONE=" in done.stderr


def test_tpu_vm_detached_outlives_its_shell_and_runs_once(repo):
    """The session that started it gets a SIGHUP, as when a connection is lost; the words said stop it."""
    write_script(
        repo / ".venv" / "bin" / "python",
        "#!/usr/bin/env bash\ntrap 'echo told to stop; exit 75' TERM\necho runs\n"
        "until [[ -e done ]]; do sleep 0.05; done\necho done\n",
    )
    words = ["CONFIG=configs/x.py", "WORKDIR=gs://b/w", "NAME=pod", "ZONE=z", "REPO=a checkout"]
    write_script(
        repo.parent / "bin" / "gcloud",
        "#!/usr/bin/env bash\nfor word; do if [[ $word == --command=* ]]; then\n"
        "setsid bash -c \"${word#*=}\"' && kill -HUP 0' || exit $(($? == 129 ? 0 : 1)); fi; done\n",
    )
    log, pid = repo / "runs" / "tpu_vm.log", repo / "runs" / "tpu_vm.pid"
    done = start(repo, "tpu_vm.sh", *words)
    assert done.returncode == 0, done.stderr
    assert wait_for(lambda: log.exists() and "runs\n" in log.read_text()), done.stderr
    again = start(repo, "tpu_vm.sh", *words)
    assert again.returncode != 0
    assert f"a run is going on here, process {pid.read_text().strip()}; its log is {log}" in again.stderr
    assert log.read_text().count("runs\n") == 1
    follow, stop = re.search(r"follow: (.*)\nstop: +(.*)\n", done.stderr).groups()
    assert "--worker=0" in follow and "tail -n 100 -F a" in follow.replace("\\", "")
    subprocess.run(["bash", "-c", f"PATH={repo.parent}/bin:$PATH; {stop}"], cwd=repo.parent, timeout=60)
    assert wait_for(lambda: "told to stop" in log.read_text()), log.read_text()
    (repo / "done").touch()
    assert wait_for(lambda: start(repo, "tpu_vm.sh", *words).returncode == 0), "the lock went with its holder"
    assert wait_for(lambda: log.read_text().endswith("runs\ndone\n"))


def slurm(repo, *words, **env):
    """Starts the copy that Slurm makes of the script, outside the repository, as a job of four tasks."""
    spool = shutil.copy(repo / "launch" / "slurm.sbatch", repo.parent / "slurm_script")
    job = {
        "SLURM_JOB_ID": "40007",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NTASKS": "4",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
        "SLURM_SUBMIT_DIR": str(repo),
        "TMPDIR": str(repo.parent),
    }
    return start(repo, str(spool), "CONFIG=configs/x.py", "WORKDIR=gs://b/w", *words, cwd=repo, **(job | env))


@pytest.mark.parametrize(
    "visible, ids",
    [("0,1", ["0", "1", "0", "1"]), ("3", ["0"] * 4), ("0,1,2,3", ["0,1", "2,3"] * 2), ("", [])],
)
def test_slurm_tasks(repo, visible, ids):
    done = slurm(repo, CUDA_VISIBLE_DEVICES=visible)
    lines = done.stdout.splitlines()
    common = (
        f"{command(repo, workdir='gs://b/w')} in {repo} JSAE_COORDINATOR=node1:20007 JSAE_NUM_PROCESSES=4"
    )
    assert done.returncode == 0 and len(lines) == 4
    for i, line in enumerate(lines):
        assert line.startswith(f"{common} JSAE_PROCESS_ID={i}")
    assert re.findall(r"LOCAL_DEVICE_IDS=(\S+)", done.stdout) == ids


def test_slurm_requeues_a_preempted_job_only(repo):
    python = repo / ".venv" / "bin" / "python"
    write_script(python, "#!/usr/bin/env bash\nexit 75\n")
    done = slurm(repo)
    assert done.returncode == 75 and done.stdout == "scontrol requeue 40007\n"
    write_script(python, "#!/usr/bin/env bash\nexit 9\n")
    done = slurm(repo)
    assert done.returncode == 9 and done.stdout == ""


def test_slurm_outside_a_job(repo):
    done = start(repo, "slurm.sbatch", "CONFIG=configs/x.py", "WORKDIR=w", cwd=repo)
    assert done.returncode == 2 and "start it with sbatch" in done.stderr


def test_slurm_gives_the_tasks_the_grace_that_slurm_gives(repo):
    """The default, another --signal from sbatch's variable, one without a time, and a key."""
    write_script(repo / ".venv" / "bin" / "python", "#!/usr/bin/env bash\necho $JSAE_GRACE_S\n")
    for env, words, grace in [
        ({}, [], 110),
        ({"SBATCH_SIGNAL": "B:USR1@300"}, [], 290),
        ({"SBATCH_SIGNAL": "USR1"}, [], 50),
        ({"SBATCH_SIGNAL": "TERM@15"}, [], 10),
        ({}, ["GRACE_S=7"], 7),
    ]:
        assert slurm(repo, *words, **env).stdout == f"{grace}\n" * 4
    done = slurm(repo, "GRACE_S=soon")
    assert done.returncode == 2 and "GRACE_S=soon is not a number" in done.stderr


@pytest.mark.parametrize("per_node, tasks", [("4", 4), ("2(x2)", 4), ("2(x2),1", 5), ("1", 1)])
def test_slurm_counts_the_tasks_where_their_number_is_unset(repo, per_node, tasks):
    write_script(
        repo.parent / "bin" / "srun",
        '#!/usr/bin/env bash\necho "$@" | grep -o -e "--ntasks=[0-9]*"; echo "at ${JSAE_COORDINATOR:-}"\n',
    )
    done = slurm(repo, SLURM_NTASKS="", SLURM_TASKS_PER_NODE=per_node)
    assert done.stdout == f"--ntasks={tasks}\nat {'node1:20007' if tasks > 1 else ''}\n"


def test_slurm_nodes_with_other_numbers_of_tasks(repo):
    """A node with one task of three gives it all its devices."""
    write_script(
        repo.parent / "bin" / "srun",
        "#!/usr/bin/env bash\nwhile [[ $1 == --* ]]; do shift; done\n"
        'for i in 0 1; do SLURM_NODEID=0 SLURM_PROCID=$i SLURM_LOCALID=$i "$@"; done\n'
        'SLURM_NODEID=1 SLURM_PROCID=2 SLURM_LOCALID=0 "$@"\n',
    )
    done = slurm(repo, SLURM_NTASKS="3", SLURM_STEP_TASKS_PER_NODE="2,1", CUDA_VISIBLE_DEVICES="0,1")
    assert re.findall(r"LOCAL_DEVICE_IDS=(\S+)", done.stdout) == ["0", "1", "0,1"]


def test_slurm_without_the_temporary_folder_of_the_login_node(repo):
    write_script(repo / ".venv" / "bin" / "python", "#!/usr/bin/env bash\necho ${TMPDIR:-none}; exit 75\n")
    done = slurm(repo, TMPDIR="/nowhere/40007")
    assert "TMPDIR=/nowhere/40007 is no folder to write in" in done.stderr
    assert done.returncode == 75 and done.stdout == "none\n" * 4 + "scontrol requeue 40007\n"


@pytest.mark.parametrize("sent", ["TERM", "USR1", "HUP"])
def test_slurm_task_waits_for_the_pipeline_whatever_the_signal(repo, sent):
    """Slurm signals every process of a task, the shell around the pipeline too."""
    write_script(
        repo / ".venv" / "bin" / "python",
        f"#!/usr/bin/env bash\ntrap '' {sent}\nkill -{sent} $PPID\nsleep 0.1\nexit 75\n",
    )
    done = slurm(repo)
    assert done.returncode == 75 and done.stdout == "scontrol requeue 40007\n"


def test_slurm_passes_a_signal_to_the_batch_script_on(repo):
    """--signal=B:USR1@300 reaches the batch script alone; TERM comes to the tasks too, once."""
    write_script(
        repo.parent / "bin" / "srun",
        "#!/usr/bin/env bash\ntrap 'echo srun: TERM; done=yes' TERM\nkill -TERM $PPID\nsleep 0.2\n"
        "kill -USR1 $PPID\nuntil [[ ${done:-} ]]; do sleep 0.05; done\nsleep 0.2\nexit 9\n",
    )
    done = slurm(repo)
    assert done.returncode == 9 and done.stdout == "srun: TERM\n"


MIG = "GPU 0: A100 (UUID: GPU-a)\n" + "".join(f"  MIG 3g.20gb Device {i}: (UUID: MIG-{i})\n" for i in (0, 1))


@pytest.mark.parametrize(
    "listed, visible, processes, code, words",
    [
        (MIG, None, "1", 0, "venv.sh auto"),
        (MIG, None, "all", 2, "processes on MIG slices: slices cannot work together"),
        (MIG, "MIG-b", "1", 0, "venv.sh auto"),
        ("GPU 0: x\n", "MIG-b,MIG-c", "2", 2, "2 processes on MIG slices"),
        ("GPU 0: x\nGPU 1: x\n", "", "all", 2, "no GPU found"),  # set, and empty: none
        ("GPU 0: x\nGPU 1: x\n", "-1", "all", 2, "no GPU found"),
        ("GPU 0: x\nGPU 1: x\n", "NoDevFiles", "all", 2, "no GPU found"),
        ("GPU 0: x\nGPU 1: x\n", "0, 1,", "3", 2, "2 devices cannot be dealt evenly to 3 processes"),
        ("No devices were found\n", None, "all", 2, "no GPU found"),
    ],
)
def test_gpu_counts_devices_as_cuda_does(repo, listed, visible, processes, code, words):
    write_script(repo.parent / "bin" / "nvidia-smi", f"#!/usr/bin/env bash\ncat <<'END'\n{listed}END\n")
    env = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    given = ["CONFIG=configs/x.py", "WORKDIR=w", f"PROCESSES={processes}", "COORDINATOR=h:1"]
    done = start(repo, "gpu.sh", *given, cwd=repo, **env)
    assert done.returncode == code and words in done.stderr, done.stderr


def test_slurm_refuses_several_tasks_on_mig_slices(repo):
    done = slurm(repo, CUDA_VISIBLE_DEVICES="MIG-b")
    assert done.returncode == 2 and "4 processes on MIG slices" in done.stderr


def test_gpu_says_what_nvidia_smi_says(repo):
    words = ["CONFIG=configs/x.py", "WORKDIR=w"]
    said = "Failed to initialize NVML: Driver/library version mismatch"
    write_script(repo.parent / "bin" / "nvidia-smi", f"#!/usr/bin/env bash\necho '{said}'; exit 18\n")
    done = start(repo, "gpu.sh", *words, cwd=repo)
    assert done.returncode == 2 and said in done.stderr and "ACCELERATOR=none" in done.stderr
    write_script(repo / ".venv" / "bin" / "python", "#!/usr/bin/env bash\necho $JAX_PLATFORMS\n")
    done = start(repo, "gpu.sh", *words, "ACCELERATOR=none", cwd=repo, JAX_PLATFORMS="")
    assert done.returncode == 0 and done.stdout == "cpu\n" and "venv.sh \n" in done.stderr


def test_gpu_goes_on_when_the_terminal_closes_and_stops_at_usr1(repo):
    write_script(
        repo / ".venv" / "bin" / "python",
        "#!/usr/bin/env bash\ntrap 'echo signal; exit 75' TERM\n"
        "echo ready\nfor i in {1..100}; do sleep 0.1; done\n",
    )
    words = ["CONFIG=configs/x.py", "WORKDIR=w", "PROCESSES=2", "COORDINATOR=h:1"]
    process = subprocess.Popen(
        [str(repo / "launch" / "gpu.sh"), *words], cwd=repo, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with process:
        assert [process.stdout.readline(), process.stdout.readline()] == [b"ready\n", b"ready\n"]
        process.send_signal(signal.SIGHUP)
        time.sleep(0.4)
        assert process.poll() is None
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.read() == b"signal\nsignal\n"
    assert process.returncode == 75


WRITTEN = [  # as typed, as the pipeline gets it from the folder HERE of a user with the home HOME
    ("w", "HERE/w"),
    ("w/", "HERE/w"),
    ("./a b/#1//", "HERE/./a b/#1"),
    ("[k=16]", "HERE/[k=16]"),
    ("~", "HOME"),
    ("~/w/", "HOME/w"),
    ("~root/w", "/root/w"),
    ("/w//", "/w"),
    ("gs://b/w/", "gs://b/w"),
    ("gs://b", "gs://b"),
    ("100%", "HERE/100%"),
]


@pytest.mark.parametrize("typed, meant", WRITTEN, ids=[row[0] for row in WRITTEN])
def test_paths_as_shells_and_people_write_them(repo, tmp_path, typed, meant):
    here, home = str(repo.parent), str(tmp_path / "my home")
    meant = meant.replace("HERE", here).replace("HOME", home)
    words = [f"CONFIG={repo}/configs/x.py", f"WORKDIR={typed}", f"DATA_DIR={typed}"]
    done = start(repo, "gpu.sh", *words, f"--config.report.twin={typed}", "--config.sae.k=16", HOME=home)
    line = command(repo, workdir=meant)
    rest = f"<--config.data.dir={meant}><--config.report.twin={meant}><--config.sae.k=16>"
    assert done.stdout == f"{line}{rest} in {repo}\n"
    assert ("venv.sh auto gcs" in done.stderr) == typed.startswith("gs://")
    done = start(repo, "demo.sh", typed, f"--config.analysis.embedding_workdir={typed}", HOME=home)
    assert f"<--workdir={meant}><--config.analysis.embedding_workdir={meant}> in" in done.stdout
    assert f"the report will be {meant}/report/index.html" in done.stderr


def test_data_that_is_downloaded_is_no_folder(repo):
    words = ["CONFIG=configs/x.py", "WORKDIR=w", "DATA_DIR=download", "--config.data.dir=download"]
    assert (
        "<--config.data.dir=download><--config.data.dir=download>"
        in start(repo, "gpu.sh", *words, cwd=repo).stdout
    )


@pytest.mark.parametrize(
    "form, meant",
    [
        ("small", "small"),
        ("w.safetensors", "HERE/w.safetensors"),  # a file that is here
        ("sub/none.safetensors", "HERE/sub/none.safetensors"),
        ("~/w.safetensors", "HOME/w.safetensors"),
        ("/w:1.safetensors", "/w:1.safetensors"),
    ],
)
def test_weights_behind_the_config(repo, tmp_path, form, meant):
    (repo.parent / "w.safetensors").touch()
    home = str(tmp_path / "my home")
    meant = meant.replace("HERE", str(repo.parent)).replace("HOME", home)
    done = start(repo, "gpu.sh", f"CONFIG=a checkout/configs/x.py:{form}", "WORKDIR=/w", HOME=home)
    assert done.stdout.startswith(command(repo, config=f"{repo}/configs/x.py:{meant}", workdir="/w"))


@pytest.mark.parametrize("script", ["demo.sh", "test.sh", "gpu.sh", "tpu_vm.sh", "slurm.sbatch"])
def test_what_other_programs_have_set_is_left_out(repo, script):
    """Variables for another Python, of an outer run, a CDPATH: none reaches the pipeline."""
    write_script(
        repo / ".venv" / "bin" / "python",
        "#!/usr/bin/env bash\npwd; env | grep -E '^(PYTHON|JSAE_(COORD|NUM|PROCESS))' || true\n",
    )
    (repo.parent / "elsewhere" / "launch").mkdir(parents=True)
    env = dict(PYTHONPATH="/lab/python3.8", PYTHONHOME="/lab", PYTHONWARNINGS="error", CDPATH="elsewhere:.")
    env |= dict(JSAE_COORDINATOR="h:1", JSAE_NUM_PROCESSES="2", JSAE_PROCESS_ID="1", PYTHONUNBUFFERED="1")
    if script == "slurm.sbatch":
        env |= dict(SLURM_JOB_ID="7", SLURM_NTASKS="1", SLURM_SUBMIT_DIR=str(repo))
    words = [] if script in ("demo.sh", "test.sh") else ["CONFIG=configs/x.py", "WORKDIR=w"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JSAE_", "SLURM_", "CUDA_", "PYTHON"))}
    clean["PATH"] = f"{repo.parent / 'bin'}:{clean['PATH']}"
    done = subprocess.run(
        ["bash", f"launch/{script}", *words],
        cwd=repo,
        env=clean | env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    kept = {str(repo), "PYTHONUNBUFFERED=1"}
    if script == "tpu_vm.sh":
        kept.add("JSAE_COORDINATOR=auto")
    if script == "slurm.sbatch":
        kept |= {f"JSAE_PROCESS_ID={i}" for i in range(4)}
    assert set(done.stdout.splitlines()) == kept
    assert "left out here: PYTHONPATH PYTHONHOME PYTHONWARNINGS" in done.stderr
