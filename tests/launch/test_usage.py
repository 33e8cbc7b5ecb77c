"""What commands say of themselves, and to what is mistyped: one Python imports, a fork of it runs each."""

import ast
import json
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = {  # command -> its file
    ".".join(path.relative_to(ROOT / "launch").with_suffix("").parts).removesuffix(".__main__"): path
    for path in sorted((ROOT / "launch").rglob("*.py"))
    if 'if __name__ == "__main__"' in path.read_text() and path.stem not in ("server", "points")
}
COMMANDS = list(SOURCES)
DEMO = "--config=configs/demo.py:small"
FORKS = """
import json, os, runpy, sys, warnings
import jsae.ablation.run, jsae.data.pipeline, jsae.sae.run, jsae.study  # what takes long
warnings.simplefilter("ignore")  # jax's, of forks
for module, *words in json.load(sys.stdin):
    sys.stdout.flush()
    if os.fork() == 0:
        os.dup2(1, 2)
        sys.argv = [module, *words]
        code = 0
        try:
            runpy.run_module(f"launch.{module}", run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            code = ended.code or 0
            if isinstance(code, str):
                code = print(code) or 1
        sys.stdout.flush()
        os._exit(code)  # an ordinary end takes a second to let go of what was imported
    print("\\nended with", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""
ASKED = {
    **{f"{name} --help": (name, "--help") for name in COMMANDS},
    "config": ("pipeline", DEMO, "--show_config", "--config.sae.topk.k=9", "--config.data.dir=a b"),
    "no workdir": ("train_sae", DEMO),
    "an empty workdir": ("train_sae", DEMO, "--workdir="),
    "no config": ("sweep", "--workdir=w"),
    "an unknown flag": ("pipeline", DEMO, "--worksdir=x"),
    "a word": ("pipeline", DEMO, "--workdir=w", "sae"),
    "a flag of another command": ("faults.topologies", "--proceses=1"),
    "a value missing": ("faults.topologies",),
    "a row that is none": ("known_dictionary", "--config=configs/known_dictionary.py:small", "--rows=topkk"),
    "no SAE": ("benchmark.compare_saelens", "nowhere"),
}


@pytest.fixture(scope="module")
def said(clean_environment):
    """name of ASKED -> (exit code, what was said)."""
    done = subprocess.run(
        [sys.executable, "-c", FORKS],
        input=json.dumps(list(ASKED.values())),
        env=clean_environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    parts = re.split(r"\nended with (-?\d+)\n", done.stdout)
    return dict(zip(ASKED, zip(map(int, parts[1::2]), parts[0::2], strict=False), strict=True))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_what_the_command_does_and_its_flags(said, command):
    code, text = said[f"{command} --help"]
    source = SOURCES[command].read_text()
    doc = ast.get_docstring(ast.parse(source))
    assert code == 0 and " ".join(doc.split()) in " ".join(text.split()), text
    flags = re.findall(r'(?:DEFINE_\w+|add_argument)\(\s*"(?:--)?(\w+)"', source)
    if "start.run" in source:
        flags = ["config", "workdir", "restart", "profile_steps", "show_config"]
    assert all(flag in text for flag in flags) and "Traceback" not in text and len(text.splitlines()) < 60


def test_show_config_prints_every_key_with_its_value(said):
    from configs import demo

    code, text = said["config"]
    lines = text.strip().splitlines()
    assert code == 0 and "config.sae.topk.k = 9" in lines and "config.data.dir = 'a b'" in lines
    assert "config.data.n_train = 1024" in lines  # of the form that was named

    def count(node):
        return sum(count(value) if hasattr(value, "items") else 1 for value in node.values())

    assert len(lines) == count(demo.get_config()) and lines == sorted(lines)


@pytest.mark.parametrize(
    "given, words",
    [
        ("no workdir", "error: --workdir=FOLDER is missing: where the study goes, for example --workdir="),
        ("an empty workdir", "error: --workdir=FOLDER is missing"),
        ("no config", "error: --config=FILE is missing, for example --config=configs/demo.py"),
        (
            "an unknown flag",
            "error: there is no flag --worksdir; the flags are --config, --profile_steps, --restart, "
            "--show_config, --workdir",
        ),
        (
            "a word",
            "error: unexpected argument 'sae'; flags are --config, --config.KEY=VALUE, --profile_steps",
        ),
        (
            "a flag of another command",
            "error: there is no flag --proceses; the flags are --changes, --config",
        ),
        ("a value missing", "error: --workdir=VALUE is missing: Folder for the studies."),
        ("a row that is none", "there is no row 'topkk'; the rows are batch_topk"),
        ("no SAE", "error: nowhere holds no exported SAE (cfg.json)"),
    ],
)
def test_a_mistyped_command_is_told_in_one_line(said, note_case, given, words):
    code, text = said[given]
    assert code == 1 and words in text and "Traceback" not in text, text
    assert sum("error:" in line for line in text.splitlines()) == 1
    note_case("6. command line", given, text.strip().splitlines()[-1])
