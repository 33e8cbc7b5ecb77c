"""The shell scripts: what they run, and what they refuse.

No network is used: each script runs from a copy of launch/ whose environment is
a stub that prints its arguments and the JSAE_ variables (script_stubs.py).
"""

import os
import re
import shutil
import signal
import subprocess
import time

import pytest

from tests.launch.script_stubs import ROOT, SCRIPTS, command, start, write_script

STARTED = [s for s in SCRIPTS if s.name not in ("arguments.sh", "run")]


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
    done = start(repo, "demo.sh", "a study", "--config.sae.topk.k=16")
    workdir = repo.parent / "a study"
    words = f"<--config=configs/demo.py><--workdir={workdir}><--config.sae.topk.k=16>"
    line = f"<-m><launch.pipeline>{words} in {repo}\n"
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
        "<-m><mypy>",
        "<-m><pytest><--numprocesses=auto><--maxprocesses=8><--dist=loadfile><--no-loadscope-reorder>"
        "<tests/sae><-k><top k>",
    ]
    write_script(repo / ".venv" / "bin" / "python", "#!/usr/bin/env bash\nexit 7\n")
    assert start(repo, "test.sh").returncode == 7


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
    ("~root/w", os.path.expanduser("~root/w")),
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
    done = start(repo, "gpu.sh", *words, f"--config.report.twin={typed}", "--config.sae.topk.k=16", HOME=home)
    line = command(repo, workdir=meant)
    rest = f"<--config.data.dir={meant}><--config.report.twin={meant}><--config.sae.topk.k=16>"
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
