"""How fast the hot paths are here: `python -m launch.benchmark [--only=SECTION] [--out=FILE]`.

    classifier    images/s of ConvNeXt forward and training (forward and all gradients, no optimizer),
                  float32, 100 classes; of the depthwise convolution alone, beside plain lax.conv
    data          images/s decoding photos each time, and from the decoded cache (needs --data_dir); those of
                  augmentation on the device (crop, flip, TrivialAugment), and of the same crop, flip and a
                  rotation, inversion or smoothing of each image by OpenCV in one thread of the host
    sae           vectors/s of whole SAE training steps, and of the encoder's product alone; with --only=sae
                  also growth with F and k, and streaming beside a resident store (benchmark/sae.py)
    all_features  closed-form ablations/s, one per (feature, image) pair, reduced to moments over images: 256
                  images, 6,144 features, 768 channels, 100 classes, random numbers, every feature active; for
                  one target class (the label) and for all three; with --workdir=W also how near to the
                  patched forward pass the closed form is in that study, and how long the study's pass takes
    compile       only with --only=compile: every program of the product compiled for --target, which need not
                  be there, with its launches, bytes, operations and collectives (benchmark/compile.py)

Variants alternate round by round and medians are reported, since a machine's speed drifts. With --peers=DIR
(a folder with convnext_peers.sh ARCH SIZE BATCH and sae_peers.sh C F K N, printing JSON lines) other people's
code takes its turn too.
"""

import json
import os
import pathlib

import jax
import numpy as np
from absl import app, flags

from jsae.runtime import allocator
from launch import usage
from launch.benchmark import all_features, classifier, data, sae, turns

_DTYPE = flags.DEFINE_enum("dtype", "float32", ("float32", "bfloat16"), "Of the classifier's computation.")
_OUT = flags.DEFINE_string("out", None, "Write the numbers as JSON to this file.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds; each variant runs once in each.", lower_bound=1)
_PEERS = flags.DEFINE_string("peers", None, "Folder of scripts that time other people's code.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "A finished study of the final site, for the section all_features."
)
_TARGET = flags.DEFINE_string("target", "cpu", "Of the section compile: h200, v5e:2x4 or cpu.")
_PROGRAMS = flags.DEFINE_string("programs", "", "Of the section compile: a pattern in the programs' names.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Photos in FGVC layout, for the section data.")


def _classifier(alone: bool) -> dict:
    how = (_ROUNDS.value, _DTYPE.value, _PEERS.value)
    return {"dtype": _DTYPE.value} | {
        name: classifier.rates(*network, *how) for name, network in classifier.NETWORKS.items()
    }


def _data(alone: bool) -> dict:
    if _DATA_DIR.value:
        return data.rates(_DATA_DIR.value, _ROUNDS.value)
    if alone:
        raise app.UsageError("--only=data needs --data_dir")
    return {"left_out": "needs --data_dir"}


def _sae(alone: bool) -> dict:
    def peers(c: int = 768, f: int = 6144, k: int = 32, n: int = 4096) -> list[dict]:
        return turns.peer_rows(_PEERS.value, "sae_peers.sh", c, f, k, n) if _PEERS.value else []

    peers(32, 64, 4, 128)  # a peer that cannot run says so now, not after minutes
    row = sae.rates(turns.alternate, _ROUNDS.value, peers)
    if alone:  # minutes; not part of the short table
        rounds = min(3, _ROUNDS.value)
        row |= {"growth": sae.growth(turns.alternate, rounds), "stream": sae.stream(rounds)}
    return row


def _all_features(alone: bool) -> dict:
    row = all_features.rates(turns.alternate, _ROUNDS.value)
    return row | ({"study": all_features.study(_WORKDIR.value, _ROUNDS.value)} if _WORKDIR.value else {})


SECTIONS = {"classifier": _classifier, "data": _data, "sae": _sae, "all_features": _all_features}
_ONLY = flags.DEFINE_enum("only", None, [*SECTIONS, "compile"], "Run one section.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    if _ONLY.value == "compile":
        from launch.benchmark import compile as ahead  # the whole product, which the others need not load

        ahead.run(_TARGET.value, _PROGRAMS.value, _OUT.value)
        return
    allocator.keep_freed_memory()
    device = jax.devices()[0]
    results = {
        "device": {"kind": device.device_kind, "count": jax.device_count(), "cores": os.cpu_count()},
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
        "rounds": _ROUNDS.value,
    }
    for name in [_ONLY.value] if _ONLY.value else SECTIONS:
        results[name] = SECTIONS[name](alone=bool(_ONLY.value))
        _print(name, results[name])
    if _OUT.value:
        pathlib.Path(_OUT.value).write_text(json.dumps(results, indent=2) + "\n")
        print(f"written: {_OUT.value}")


def _print(title: str, row: dict) -> None:
    for key, value in row.items():
        if isinstance(value, dict):
            _print(f"{title}.{key}", value)
        else:
            print(f"{title}.{key}".ljust(60), f"{value:,.2f}" if isinstance(value, float) else value)


if __name__ == "__main__":
    usage.run(main)
