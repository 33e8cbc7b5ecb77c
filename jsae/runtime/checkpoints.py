"""Checkpoints: orbax underneath, the state as a flat dict of arrays by path.

A state is any pytree of arrays. It is saved as {"params/w_dec": array, ...}, so a checkpoint depends on
the names in the tree and not on its classes, and is restored into a tree of `jax.ShapeDtypeStruct` whose
shardings are the *target's* (save on 8 devices, restore on 2). Random keys are never saved: states hold
step numbers, and keys are derived from (seed, step).

The latest checkpoints are kept, and beside them the best one by a metric. Saving runs in the background;
a failed background write raises at the next call. A damaged newest checkpoint is dropped with a warning
and the one before is used.
"""

import jax
import orbax.checkpoint as ocp
from etils import epath

from jsae.runtime import logs


def _flat(tree) -> dict:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


class Checkpoints:
    """The checkpoints of one training stage.

    Args:
      folder: where they lie (any etils path).
      keep: how many of the latest are kept.
      best: name of a metric passed to `save`, of which the checkpoint with the highest value is kept too.
    """

    def __init__(self, folder, *, keep: int = 2, best: str | None = None):
        manager = ocp.checkpoint_managers
        policies = [manager.LatestN(keep)]
        if best is not None:
            policies.append(
                manager.BestN(
                    get_metric_fn=lambda metrics: metrics[best],
                    reverse=False,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._folder = epath.Path(folder)
        self._best = best
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=manager.AnyPreservationPolicy(policies),
                best_fn=(lambda metrics: metrics[best]) if best else None,
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,
            ),
        )

    def latest_step(self) -> int | None:
        """The newest saved step, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The saved step with the highest value of the best metric, or None."""
        return self._manager.best_step() if self._best else None

    def restore(self, abstract_state, step: int | None = None):
        """(step, state) of the newest readable checkpoint, or None if there is none.

        Args:
          abstract_state: the state's tree with `jax.ShapeDtypeStruct` leaves that carry shardings.
          step: a certain step instead of the newest; then an unreadable one raises.
        """
        if step is not None:
            return step, self._restore(abstract_state, step)
        for newest in sorted(self._manager.all_steps(), reverse=True):
            try:
                return newest, self._restore(abstract_state, newest)
            except (ValueError, OSError, KeyError) as error:
                logs.get_logger().warning(
                    "checkpoint %s cannot be read (%s); dropped, falling back to the one before",
                    *(self._folder / str(newest), error),
                )
                self._manager.delete(newest)
        return None

    def _restore(self, abstract_state, step: int):
        abstract = _flat(abstract_state)
        flat = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        return jax.tree.unflatten(jax.tree.structure(abstract_state), [flat[name] for name in abstract])

    def save(self, step: int, state, metrics: dict | None = None) -> None:
        """Save in the background; does nothing if `step` is saved already."""
        if step in self._manager.all_steps():
            return
        self._manager.save(step, args=ocp.args.StandardSave(_flat(state)), metrics=metrics, force=True)

    def wait(self) -> None:
        """Return when all saves are on disk; raises what a background save raised."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def close(self) -> None:
        self.wait()
        self._manager.close()


def abstract(tree, sharding):
    """The tree as `jax.ShapeDtypeStruct` leaves, all with one sharding or a tree of shardings."""
    shardings = (
        sharding
        if not isinstance(sharding, jax.sharding.Sharding)
        else jax.tree.map(lambda _: sharding, tree)
    )
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
