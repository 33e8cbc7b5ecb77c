"""What SAEs find of a dictionary that is known, as a markdown table.

    python -m launch.known_dictionary [--rows=topk,gated] [--seeds=3] [--config=FILE]

One row per variant or baseline: the mean over the seeds, and in brackets the smallest and largest.
"""

import runpy
import time
from typing import Any

import numpy as np
from absl import app, flags
from jax.sharding import Mesh

from jsae.runtime import allocator
from jsae.runtime import mesh as meshes
from launch import usage

COLUMNS = ("recovered_frequent", "recovered", "share_true", "fvu", "l0", "dead_fraction")


def run_row(mesh: Mesh, config: Any, name: str, seed: int) -> dict:
    """The numbers of one row of `config.rows` for one seed, and the seconds it took."""
    from jsae.experiments import known_dictionary
    from jsae.sae import variants
    from jsae.sae.run import recipe_of

    if name not in config.rows:
        raise ValueError(f"there is no row {name!r}; the rows are {', '.join(config.rows)}")
    c = config.sae.copy_and_resolve_references()
    c.update(config.rows[name])
    truth = known_dictionary.make_truth(seed, **config.truth)
    start = time.monotonic()
    sae = known_dictionary.fit(
        mesh,
        truth,
        recipe_of(c, n_steps=config.n_steps, dead_after_steps=config.dead_after_steps),
        seed=seed,
        variant=variants.of_section(c),
        n_features=c.n_features,
        batch_size=config.batch_size,
    )
    found = known_dictionary.report(sae, truth, seed=seed, n_vectors=config.n_test_vectors)
    return found | {"seconds": time.monotonic() - start}


def define_flags() -> None:
    """The flags of this command; not where it is imported for its functions."""
    flags.DEFINE_string("config", "configs/known_dictionary.py", "A config, FILE or FILE:form.")
    flags.DEFINE_list("rows", [], "Which rows; none means all.")
    flags.DEFINE_integer("seeds", 1, "How many seeds, from config.seed on.", lower_bound=1)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; the flags are --config, --rows and --seeds")
    path, *form = flags.FLAGS.config.split(":", 1)
    config = runpy.run_path(path)["get_config"](*form)
    allocator.keep_freed_memory()
    mesh = meshes.make_mesh(-1, 1)
    print("| | " + " | ".join((*COLUMNS, "seconds")) + " |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    for name in flags.FLAGS.rows or config.rows:
        found = [run_row(mesh, config, name, config.seed + i) for i in range(flags.FLAGS.seeds)]
        cells = []
        for column in (*COLUMNS, "seconds"):
            values = np.array([row[column] for row in found], float)
            low, high = (f"{v:.3g}" for v in (values.min(), values.max()))
            cells.append(f"{values.mean():.3g}" + (f" [{low}, {high}]" if len(values) > 1 else ""))
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    define_flags()
    usage.run(main)
