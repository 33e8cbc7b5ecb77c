"""Results of a stage's passes, kept until the stage is finished: interrupted, it goes on behind the last one.

    keep = Passes(stage, (FeatureEffects, Moments))
    effects = keep("feature_space", measure)(acts, sae, features=features)

Called for the first time `measure` runs and what it returned is written to passes/feature_space.npz, whole or
not at all; called again after an interruption it is read. What comes back has passed through the file's form
in both cases, so a resumed run sees the same values bit for bit; and several processes all go on with the
writer's, so that none passes more often, or longer, than another. Arrays, numbers, text, None, lists, tuples
and dicts can be kept, and the classes named (dataclasses and named tuples); nothing else is ever made from a
file.
"""

import dataclasses
import functools
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from jsae.runtime import artifacts, logs, mesh, stages


class Passes:
    """The kept results of a stage; `kinds` are the classes they may consist of."""

    def __init__(self, stage: stages.Stage, kinds: Sequence[type] = ()) -> None:
        self._stage, self._folder = stage, stage.folder / stages.PASSES
        self._kinds = {kind.__name__: kind for kind in kinds}

    def __call__(self, name: str, make: Callable[..., Any]) -> Callable[..., Any]:
        """`make`, whose result is kept under `name` whatever its arguments are."""

        @functools.wraps(make)
        def kept(*args: Any, **kwargs: Any) -> Any:
            path = self._folder / f"{name}.npz"
            data = mesh.bytes_of_writer(_read(path))
            if data:
                logs.get_logger().info("%s: there from before", name)
                return self._unpack(data)
            data = self._pack(make(*args, **kwargs))
            artifacts.write_bytes(path, data, checked=True)
            self._stage.kept()
            return self._unpack(mesh.bytes_of_writer(data))

        return kept

    def _pack(self, value: Any) -> bytes:
        arrays: dict[str, Any] = {}
        tree = self._describe(value, arrays)
        stream = io.BytesIO()
        text = np.frombuffer(json.dumps(tree).encode(), np.uint8)
        np.savez(stream, tree=text, **arrays)
        return stream.getvalue()

    def _describe(self, value: Any, arrays: dict[str, np.ndarray]) -> Any:
        """The JSON form of a value; arrays go to `arrays`."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, jax.Array | np.ndarray | np.generic):
            arrays[f"a{len(arrays)}"] = np.asarray(value)
            return {"array": len(arrays) - 1, "scalar": isinstance(value, np.generic)}
        if isinstance(value, dict):
            return {"dict": [[self._describe(part, arrays) for part in item] for item in value.items()]}
        kind = type(value).__name__
        if kind in self._kinds:
            if dataclasses.is_dataclass(value):
                names = [field.name for field in dataclasses.fields(value)]
            else:
                names = value._fields
            fields = {name: self._describe(getattr(value, name), arrays) for name in names}
            return {"kind": kind, "fields": fields}
        if type(value) in (list, tuple):
            return {kind: [self._describe(item, arrays) for item in value]}
        raise TypeError(f"{kind} cannot be kept; kinds named are {', '.join(self._kinds) or 'none'}")

    def _unpack(self, data: bytes) -> Any:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return self._build(json.loads(arrays["tree"].tobytes()), arrays)

    def _build(self, tree: Any, arrays: np.lib.npyio.NpzFile) -> Any:
        if not isinstance(tree, dict):
            return tree
        if "array" in tree:
            array = arrays[f"a{tree['array']}"]
            return array[()] if tree["scalar"] else array
        if "dict" in tree:
            return {self._build(k, arrays): self._build(v, arrays) for k, v in tree["dict"]}
        if "kind" in tree:
            fields = {name: self._build(value, arrays) for name, value in tree["fields"].items()}
            return self._kinds[tree["kind"]](**fields)
        items = [self._build(item, arrays) for item in next(iter(tree.values()))]
        return tuple(items) if "tuple" in tree else items


def _read(path: epath.Path) -> bytes:
    """What the writer process finds; empty if there is nothing, and in the others."""
    return artifacts.read_bytes(path) if mesh.is_writer() and path.exists() else b""
