"""slurm.sbatch and tpu_vm.sh: what they run on the nodes and workers, and which signals reach it.

No network is used: gcloud, srun and scontrol are stubs (script_stubs.py).
"""

import re
import shutil
import subprocess

import pytest

from tests.launch.script_stubs import command, start, wait_for, write_script


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
    slow = f'#!/usr/bin/env bash\nsleep 0.2\nexec {shutil.which("setsid")} "$@"\n'
    write_script(repo.parent / "bin" / "setsid", slow)  # the signal comes before the new session
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


def test_slurm_refuses_several_tasks_on_mig_slices(repo):
    done = slurm(repo, CUDA_VISIBLE_DEVICES="MIG-b")
    assert done.returncode == 2 and "4 processes on MIG slices" in done.stderr
