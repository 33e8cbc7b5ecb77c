"""Checkpoints: orbax underneath, the state as a flat dict of arrays by path.

A state is any pytree of arrays. It is saved as {"params/w_dec": array, ...}, so a checkpoint depends on
the names in the tree and not on its classes, and is restored into a tree of `jax.ShapeDtypeStruct` whose
shardings are the *target's* (save on 8 devices, restore on 2). Random keys are never saved: states hold
step numbers, and keys are derived from (seed, step).

The latest checkpoints are kept, and beside them the best one by a metric. Saving runs in the background;
a failed background write raises at the next call. With each state goes the digest of each of its arrays
(jsae.runtime.digests), for the file format underneath does not notice a changed byte. Where the newest
checkpoint is damaged and an older one is not, the damaged one is moved aside with a warning; where none can
be read nothing is touched. A disk that refuses to be read (jsae.runtime.disks) is no damage: the run ends.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from jsae.runtime import artifacts, digests, disks, logs, mesh, paths, preemption
from jsae.runtime.paths import PathLike
from jsae.runtime.stages import Stage

_DIGESTS = "digests"  # the name under which they are saved, beside the state's


def _flat(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


class Checkpoints:
    """The checkpoints of one training stage.

    Args:
      folder: where they lie, a path as `paths.resolve` takes it.
      stage: the training stage while it runs, which counts what was saved and restored.
      keep: how many of the latest are kept.
      best: name of a metric passed to `save`, of which the checkpoint with the highest value is kept too.
      read_only: nothing in the folder is touched, not even what is damaged.
    """

    def __init__(
        self,
        folder: PathLike,
        *,
        stage: Stage | None = None,
        keep: int = 2,
        best: str | None = None,
        read_only: bool = False,
    ) -> None:
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
        self._folder = paths.resolve(folder)
        self._stage, self._best = stage, best
        self._sent: int | None = None  # the last step handed to the background
        self._n_bytes = 0  # of a state
        if read_only or jax.process_index() == 0:
            _check_metrics(self._folder, read_only)
        mesh.wait_for_all(f"checkpoints of {self._folder}: tidied up")  # all shall see the same steps
        self._manager = ocp.CheckpointManager(
            self._folder,
            item_handlers=ocp.PyTreeCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=manager.AnyPreservationPolicy(policies),
                best_fn=(lambda metrics: metrics[best]) if best else None,
                enable_async_checkpointing=True,
                cleanup_tmp_directories=not read_only,
                create=not read_only,
            ),
        )
        preemption.hold_for(self._manager)

    def latest_step(self) -> int | None:
        """The newest saved step, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The saved step with the highest value of the best metric, or None."""
        return self._manager.best_step() if self._best else None

    def names(self, step: int) -> dict[str, tuple]:
        """Name -> (shape, dtype) of every array saved at `step`."""
        metadata = self._manager.item_metadata(step).tree
        return {name: (leaf.shape, leaf.dtype) for name, leaf in metadata.items() if name != _DIGESTS}

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[int, Any] | None:
        """(step, state) of the newest readable checkpoint, or None if there is none.

        Args:
          abstract_state: the state's tree with `jax.ShapeDtypeStruct` leaves that carry shardings; a part
            of the tree that was saved is enough to read that part.
          step: a certain step instead of the newest.

        Raises:
          digests.Damaged: that step is not what was saved.
          RuntimeError: no checkpoint is what was saved.
          OSError: a disk, or the memory, refuses to have a checkpoint read that may be sound.
        """
        self.wait()
        if step is not None:
            try:
                return step, self._restore(abstract_state, step)
            except Exception as error:
                path = self._folder / str(step)
                _raise_if_refused(path, error)
                raise digests.Damaged(
                    path, f"checkpoint {path} cannot be read: {disks.first_line(error)}"
                ) from error
        broken = {}
        for newest in sorted(self._manager.all_steps(), reverse=True):
            state = None
            try:
                state = self._restore(abstract_state, newest)
            except Exception as error:  # tensorstore raises no type that says more
                _raise_if_refused(self._folder / str(newest), error)
                broken[newest] = error
            if not mesh.all_agree(state is not None):  # all go on from the same step
                broken.setdefault(newest, OSError("another process cannot read it"))
                continue
            if broken:
                self._move_aside(broken, newest)
            if self._stage is not None:
                self._stage.restored(newest)
            return newest, state
        if broken:
            reasons = "; ".join(
                f"{self._folder / str(s)}: {disks.first_line(error)}" for s, error in broken.items()
            )
            raise RuntimeError(f"no checkpoint can be read: {reasons}")
        return None

    def _move_aside(self, broken: dict[int, Exception], newest: int) -> None:
        for step, error in broken.items():
            path = self._folder / str(step)
            reason, aside = disks.first_line(error), self._folder.parent / disks.ASIDE
            logs.get_logger().warning(
                f"checkpoint {path} cannot be read ({reason}); moved to {aside}, going on from step {newest}"
            )
            if jax.process_index() == 0:
                disks.move_aside(path, self._folder.parent)
        mesh.wait_for_all(f"damaged checkpoints are aside, step {newest}")
        self._manager.reload()

    def _restore(self, abstract_state: Any, step: int) -> Any:
        abstract, saved = _flat(abstract_state), self._manager.item_metadata(step).tree
        for name in abstract.keys() & saved.keys():  # as it was saved, also where jax_enable_x64 is set
            abstract[name] = abstract[name].update(dtype=saved[name].dtype)
        flat = self._read(abstract, step)
        missing = [name for name, leaf in flat.items() if isinstance(leaf, jax.ShapeDtypeStruct)]
        if missing:
            raise KeyError(f"step {step} in {self._folder} holds no {', '.join(missing)}")
        if _DIGESTS in saved:
            replicated = _replicated(next(iter(abstract.values())).sharding)
            shape, dtype = saved[_DIGESTS].shape, saved[_DIGESTS].dtype
            wanted = {_DIGESTS: jax.ShapeDtypeStruct(shape, dtype, sharding=replicated)}
            recorded = self._read(wanted, step)[_DIGESTS].addressable_data(0)
            changed = digests.differing(flat, saved.keys() - {_DIGESTS}, recorded)
            if changed:
                raise ValueError(
                    f"{len(changed)} of {len(flat)} arrays are not what was saved, {changed[0]} among them"
                )
        return jax.tree.unflatten(jax.tree.structure(abstract_state), [flat[name] for name in abstract])

    def _read(self, abstract: dict[str, Any], step: int) -> dict[str, Any]:
        restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
        args = ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args, partial_restore=True)
        return self._manager.restore(step, args=args)

    def save(self, step: int, state: Any, metrics: Mapping[str, Any] | None = None) -> None:
        """Save in the background; a step that is saved already is given its metrics, if it has none.

        What is written is a copy: the next step may be given the state's memory meanwhile.
        """
        if step in self._manager.all_steps():
            self.wait()  # it may be on its way
            if metrics is not None and self._manager.metrics(step) is None:
                self._add_metrics(step, metrics)
            return
        copy = jax.tree.map(jnp.copy, _flat(state))
        copy[_DIGESTS] = digests.of_tree(copy)
        with self._writing(sum(array.nbytes for array in copy.values())):
            self._manager.save(step, args=ocp.args.PyTreeSave(copy), metrics=metrics, force=True)
        self._sent = step
        if self._stage is not None:
            self._stage.saved(step)
            self._stage.context.failpoint(f"save/{step}")

    def _add_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Give a saved step its metrics, where orbax reads them; at no moment is the step away."""
        artifacts.write_json(self._folder / str(step) / "metrics" / "metrics", metrics)
        mesh.wait_for_all(f"metrics of step {step}")
        self._manager.reload()

    def wait(self) -> None:
        """Return when all saves are on disk. Raises OSError if one failed."""
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        if self._sent is not None and self._stage is not None:
            self._stage.context.failpoint(f"saved/{self._sent}")
        self._sent = None

    def close(self) -> None:
        """Wait for all saves, and let the folder go."""
        self.wait()
        self._manager.close()

    @contextlib.contextmanager
    def _writing(self, n_bytes: int | None = None) -> Iterator[None]:
        self._n_bytes = n_bytes or self._n_bytes  # a save that runs in the background fails in a later call
        try:
            needs = f"a checkpoint takes {self._n_bytes / 2**20:.1f} MiB"
            with preemption.saving(), disks.room_in(self._folder, disks.MOVE_WORKDIR, needs):
                yield
        except disks.NoRoom:
            raise
        except Exception as error:  # orbax and tensorstore have many types for a disk that refuses
            raise OSError(
                f"a checkpoint could not be written to {self._folder}: {disks.first_line(error)}. "
                "The checkpoints before it are intact: mend what is said, and start again"
            ) from error


def _replicated(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """The sharding of an array that every device of `sharding` holds whole."""
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return sharding


def _raise_if_refused(path: epath.Path, error: Exception) -> None:
    why = disks.why_refused(error)
    if why is not None:
        raise OSError(
            f"checkpoint {path} could not be read: {why}. It may be sound, and nothing was changed: "
            "mend what is said, and start the same command again"
        ) from error


def _check_metrics(folder: epath.Path, read_only: bool) -> None:
    """Move aside what would keep orbax from opening the folder: metrics that are no JSON.

    The newest checkpoint goes whole if there is an older one, for its metrics are part of it. Raises
    digests.Damaged instead where nothing may be moved.
    """
    steps = [path for path in folder.iterdir() if path.name.isdigit()] if folder.exists() else []
    for path in steps:
        try:
            if (path / "metrics" / "metrics").exists():
                json.loads((path / "metrics" / "metrics").read_text())
        except ValueError as error:
            if read_only:
                raise digests.Damaged(
                    path, f"the metrics of checkpoint {path} cannot be read: {error}"
                ) from error
            newest = len(steps) > 1 and int(path.name) == max(int(step.name) for step in steps)
            what = "the checkpoint is" if newest else "they are"
            aside = folder.parent / disks.ASIDE
            logs.get_logger().warning(
                "the metrics of checkpoint %s cannot be read; %s moved to %s", path, what, aside
            )
            disks.move_aside(path if newest else path / "metrics", folder.parent)


def abstract(tree: Any, sharding: Any) -> Any:
    """The tree as `jax.ShapeDtypeStruct` leaves, all with one sharding or a tree of shardings."""
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.tree.map(lambda _: sharding, tree)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, sharding)
