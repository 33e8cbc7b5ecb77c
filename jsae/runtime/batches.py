"""A function of a batch applied to many rows: padded to one shape, dealt over `data`, gathered on the
host."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jsae.runtime import mesh as meshes
from jsae.runtime.context import RunContext


def map_rows(
    step: Callable[[dict[str, jax.Array]], Any],
    read: Callable[[np.ndarray], dict[str, np.ndarray]],
    n: int,
    *,
    batch_size: int,
    mesh: Mesh | None = None,
    context: RunContext | None = None,
    label: str = "",
    unit: str = "image",
) -> Any:
    """What `step` returns for n rows, as numpy arrays [n, ...]; None for n = 0.

    Args:
      step: jitted; a dict of arrays [batch_size, ...] -> a pytree of such arrays.
      read: row numbers [b] -> their arrays [b, ...]; called for this process's share only.
      n: how many rows there are.
      batch_size: rows at once, a multiple of the mesh's data axis; the last batch repeats its last row.
      mesh: None for one local device.
      context: shows progress and stops; None: neither.
      label, unit: of the progress.

    Raises preemption.Preempted if a stop was asked for.
    """
    context = context or RunContext()
    check = context.check_here if mesh is None else context.check
    index, count = (0, 1) if mesh is None else meshes.process_slice(mesh)
    mine = slice(index * batch_size // count, (index + 1) * batch_size // count)
    found = []
    with context.progress(n, label=label, unit=unit) as progress:
        for start in range(0, n, batch_size):
            rows = np.minimum(np.arange(start, start + batch_size), n - 1)
            batch = read(rows[mine])
            batch = jax.device_put(batch) if mesh is None else meshes.put_batch(mesh, batch)
            real = min(batch_size, n - start)
            out = meshes.collect(step(batch))
            found.append(jax.tree.map(lambda part, real=real: part[:real], out))
            progress.update(real)
            check()
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found) if found else None
