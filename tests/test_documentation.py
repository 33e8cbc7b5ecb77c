"""What README.md and docs/ print works: every block is run as printed, from a copy of the repository.

A reader types the blocks in order, in the repository, with relative paths. What is theirs to fill in comes
from PLACEHOLDERS, and a command that trains is made small by SMALL, settings that are appended to it.
"""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from tests.classifier.pretrained_weights import make_tensor
from tests.data.fgvc_folder import write_folder

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(page: pathlib.Path) -> list[tuple[str, int, str, str]]:
    """(page, number, language, code); all the Python of a page, which belongs together, where it ends."""
    found = re.findall(r"^```(sh|python)\n(.*?)^```", page.read_text("utf-8"), re.S | re.M)
    numbered = [(page.name, number, *block) for number, block in enumerate(found)]
    python = [block for block in numbered if block[2] == "python"]
    together = [(*block[:3], "\n".join(code for *_, code in python)) for block in python[-1:]]
    return sorted([block for block in numbered if block not in python] + together)


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
# What must be true after the Python of a page
HOLDS = {
    "README.md": """
assert theirs.shape[0] == 1 and prepared.shape == (1, 224, 224, 3)
assert one_each.shape == (4, *logits.shape) and feats.shape[-1] == study.sae.n_features
assert (ablated != logits).any()
"""
}
# What needs a network, a card, a cloud or a cluster, and the tests themselves: these commands are not run.
NOT_RUN = {
    "launch/test.sh",
    "pip install -e '.[cuda13]'",
    "launch/gpu.sh    CONFIG=configs/fgvc_convnext_tiny.py WORKDIR=runs/fgvc DATA_DIR=PHOTOS",
    "launch/tpu_vm.sh CONFIG=configs/fgvc_convnext_tiny.py WORKDIR=gs://bucket/fgvc DATA_DIR=PHOTOS",
    "sbatch launch/slurm.sbatch CONFIG=configs/fgvc_convnext_tiny.py WORKDIR=/scratch/fgvc DATA_DIR=PHOTOS",
}
PLACEHOLDERS = {"PHOTOS": "my photos", "DIR": "my classes/", "WEIGHTS": "model.safetensors"}
SMALL = {
    "data.image_size": 32, "data.n_train": 96, "data.n_val": 32, "data.n_test": 64,
    "classifier.n_epochs": 1.0, "classifier.warmup_epochs": 0.0, "classifier.batch_size": 8,
    "activations.batch_size": 16,
    "sae.n_epochs": 1.0, "sae.batch_size": 64, "sae.lr_warmup_steps": 0,
    "analysis.batch_size": 16, "analysis.n_permutations": 2, "analysis.pixel_maps.n_features": 0,
    "ablation.batch_size": 16, "ablation.n_features": 2, "ablation.max_images": 4, "ablation.n_bootstrap": 10,
    "ablation.n_mapped_images": 0,
    "ablation.counterfactual.n_train": 4, "ablation.counterfactual.n_test": 4,
    "report.n_features": 2, "report.n_images": 4,
}  # fmt: skip
# Networks are small, too: what is printed must run, and compiling takes most of the time. A command with
# weights has the network of the file, and the paper's config takes the size of the weights.
TINY = {"classifier.depths": "(0,0,0,1)", "classifier.dims": "(4,4,4,32)"}
OF_COMMAND = {
    "demo.sh": TINY,
    "configs/demo.py ": TINY,
    "configs/photos.py ": TINY,
    "configs/photos.py": {"sae.n_features": 64, "sae.topk.k": 4},
    "configs/arrays.py": {"sae.n_features": 64, "sae.topk.k": 4},
    "configs/fgvc_convnext_tiny.py": {
        "classifier.arch": "",
        "classifier.dtype": "float32",
        "sae.n_features": 64,
    },
}


def commands(block: str) -> list[str]:
    """The commands of a shell block, without comments."""
    lines = (re.sub(r"\s+#.*", "", line).strip() for line in block.replace("\\\n", " ").splitlines())
    return [line for line in lines if line]


def made_small(command: str) -> str:
    """The command as it is run."""
    for name, value in PLACEHOLDERS.items():
        command = re.sub(rf"\b{name}\b", lambda _, value=value: shlex.quote(value), command)
    settings = SMALL if re.search(r"--config=|demo\.sh", command) else {}
    for text, more in OF_COMMAND.items():
        settings = settings | (more if text in command else {})
    return " ".join(
        [command, *(f"--config.{key}={shlex.quote(str(value))}" for key, value in settings.items())]
    )


def weights() -> dict:
    """A ConvNeXt under timm's names, a tenth as wide as atto and with one block a stage."""
    text = (ROOT / "tests/classifier/pretrained_reference.json").read_text()
    (tensors,) = (
        found["tensors"]
        for found in json.loads(text)["references"]
        if (found["source"], found["size"]) == ("timm", "atto")
    )
    return {
        name: make_tensor(name, [n // 10 if n % 40 == 0 else n for n in shape])
        for name, shape in tensors.items()
        if not re.search(r"blocks\.[1-9]", name)
    }


def link_or_copy(source, target):
    try:
        os.link(source, target)
    except OSError:  # the temporary folder is on another disk
        shutil.copy2(source, target)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the repository, with an environment of its own and the files that a reader would bring."""
    copy = tmp_path_factory.mktemp("a reader") / "jsae"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    shutil.copytree(sys.prefix, copy / ".venv", symlinks=True, copy_function=link_or_copy)
    subprocess.run([copy / "launch/venv.sh", "auto"], check=True, capture_output=True)
    write_folder(copy / PLACEHOLDERS["PHOTOS"], per_class=8)
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (copy / PLACEHOLDERS["DIR"] / name).mkdir(parents=True)
        for i in range(20):
            image = Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8))
            image.save(copy / PLACEHOLDERS["DIR"] / name / f"{i}.jpg")
    labels = np.arange(60) % 3
    np.savez(copy / "images.npz", images=rng.integers(0, 255, (60, 32, 32, 3), np.uint8), labels=labels)
    np.savez(
        copy / "activations.npz",
        activations=rng.normal(size=(60, 3, 3, 64)).astype(np.float32),
        labels=labels,
    )
    safetensors.numpy.save_file(weights(), copy / PLACEHOLDERS["WEIGHTS"])
    return copy


@pytest.fixture(scope="module")
def typed(checkout, clean_environment):
    """typed(*command) runs a command in the copy; its output. What it does to PATH stays, as in a shell."""
    environment = {name: value for name, value in clean_environment.items() if name != "PYTHONPATH"}

    def run(*command):
        if command[-1].startswith(". "):
            command = (*command[:-1], f"{command[-1]} && printf %s $PATH")
        how = {"cwd": checkout, "env": environment, "capture_output": True, "text": True, "timeout": 300}
        done = subprocess.run(command, **how, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
        if command[-1].startswith(". "):
            environment["PATH"] = done.stdout
        return done.stdout

    return run


@pytest.mark.parametrize(
    "page, number, language, code", BLOCKS, ids=[f"{b[0]}-{b[1]}-{b[2]}" for b in BLOCKS]
)
def test_a_block_runs_as_printed(typed, page, number, language, code):
    if language == "python":
        typed("python", "-c", code + HOLDS.get(page, ""))
        return
    for command in commands(code):
        if command not in NOT_RUN:
            typed("bash", "-ec", made_small(command))


def test_what_is_not_run_is_still_printed():
    printed = {command for *_, language, code in BLOCKS if language == "sh" for command in commands(code)}
    assert not NOT_RUN - printed


def test_every_name_in_the_text_resolves_after_a_plain_import(typed):
    names = {
        name for page in PAGES for name in re.findall(r"\bjsae(?:\.[A-Za-z_]+)+", page.read_text("utf-8"))
    }
    names = sorted(name for name in names if not re.search(r"\.(py|sh|git)\b", name))
    assert len(names) > 3
    each = "functools.reduce(getattr, name.split('.')[1:], jsae)"
    typed("python", "-c", f"import functools, jsae, sys\nfor name in sys.argv[1:]:\n    {each}", *names)
