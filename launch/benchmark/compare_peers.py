"""SAEs of a sweep beside other people's, trained on the same vectors: a markdown table over the seeds.

    python -m launch.sweep --config=C --workdir=W --config.sweep.seed="(0, 1, 2)" \
        --config.sweep.variant="('topk', 'batch_topk', 'matryoshka')"
    python -m launch.benchmark.compare_peers --workdir=W --vectors=vectors.npz
    python launch/benchmark/peer_saes.py vectors.npz > peers.jsonl          (in an environment with torch)
    python -m launch.benchmark.compare_peers --workdir=W --peers=peers.jsonl

--vectors writes the train and test vectors of the workdir, normalised, and the settings that the peers share.
"""

import collections
import json
import pathlib
import statistics

import numpy as np
from absl import flags

from launch import usage

_WORKDIR = flags.DEFINE_string("workdir", None, "A study with activations and a sweep.")
_VECTORS = flags.DEFINE_string("vectors", None, "Write the vectors for peer_saes.py to this .npz file.")
_PEERS = flags.DEFINE_string("peers", None, "What peer_saes.py printed.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "How many seeds the peers train.", lower_bound=1)
NUMBERS = ("fvu", "l0", "dead_fraction")


def write_vectors(workdir: pathlib.Path, path: str, n_seeds: int) -> None:
    """Write (x - mean) / scale of train and test, and `config.sae` as the peers need it."""
    from jsae.activations import ActivationStore

    config = json.loads((workdir / "config.json").read_text())["sae"]
    arrays = {}
    for split in ("train", "test"):
        store = ActivationStore.open(workdir / "activations" / split)
        arrays[split] = (store.read(0, store.n_images) - store.mean) / np.float32(store.scale)
        arrays[split] = arrays[split].reshape(-1, store.n_channels)
    shared = ("n_features", "batch_size", "n_epochs", "learning_rate", "lr_warmup_steps", "lr_decay_share")
    settings = {name: config[name] for name in shared} | {"n_seeds": n_seeds, "k": config["topk"]["k"]}
    settings["prefix_shares"] = config["matryoshka"]["prefix_shares"]
    np.savez(path, **arrays, settings=json.dumps(settings))


def table(rows: list[dict]) -> str:
    """Mean and range over the seeds of each (peer, variant), as markdown, least fvu of a variant first."""
    by_name = collections.defaultdict(list)
    for row in rows:
        by_name[row["variant"], row["peer"]].append(row)
    means = {name: statistics.mean(row["fvu"] for row in found) for name, found in by_name.items()}
    lines = ["| variant | trainer | seeds | " + " | ".join(NUMBERS) + " |", "|---" * 6 + "|"]
    for variant, peer in sorted(by_name, key=lambda name: (name[0], means[name])):
        found = by_name[variant, peer]
        cells = []
        for name in NUMBERS:
            values = [row[name] for row in found]
            cells.append(f"{statistics.mean(values):.4g} [{min(values):.4g}, {max(values):.4g}]")
        lines.append(f"| {variant} | {peer} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    from jsae.experiments import sweep

    if not _WORKDIR.value or len(argv) > 1:
        raise ValueError("--workdir=FOLDER is missing: a study with its activations and a sweep")
    workdir = pathlib.Path(_WORKDIR.value).expanduser()
    if _VECTORS.value:
        write_vectors(workdir, _VECTORS.value, _SEEDS.value)
        return
    rows = [row | {"peer": "jsae"} for row in sweep.load(workdir)]
    if not rows:
        raise ValueError(f"{workdir} has no sweep; run launch.sweep over variant and seed first")
    if _PEERS.value:
        rows += [json.loads(line) for line in pathlib.Path(_PEERS.value).read_text().splitlines()]
    print(table(rows))


if __name__ == "__main__":
    usage.run(main)
