"""What an intervention does to the logits: its targets and measures, and arrays whose axes have names.

Effects are changed minus clean, for each image and three target classes: the label, the clean prediction, and
the feature's top class on train.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jsae import metrics

TARGETS = ("label", "prediction", "top_class")
MEASURES = ("logit", "margin", "confidence", "log_confidence")


@dataclasses.dataclass(frozen=True)
class Named:
    """An array on the host with one row per pair of a feature and an image; its other axes have names.

    Attributes:
      values: [M, size of each axis].
      axes: axis -> the names of its entries, in order.
    """

    values: np.ndarray
    axes: dict[str, tuple[str, ...]]

    def index(self, **names: str) -> tuple:
        """What `values` are indexed with for the entries named; axes that are not named stay whole.

        Raises KeyError for an unknown axis or entry.
        """
        at: dict[str, slice | int] = dict.fromkeys(self.axes, slice(None))
        for axis, name in names.items():
            if name not in self.axes.get(axis, ()):
                raise KeyError(f"there is no {axis} {name!r} in {self.axes}")
            at[axis] = self.axes[axis].index(name)
        return (slice(None), *at.values())

    def at(self, **names: str) -> np.ndarray:
        """The values at the entries named, [M, remaining axes]."""
        return self.values[self.index(**names)]

    def select(self, **names: str) -> "Named":
        """The same with the names of the remaining axes."""
        axes = {axis: entries for axis, entries in self.axes.items() if axis not in names}
        return Named(self.at(**names), axes)

    def only(self, axis: str, name: str) -> "Named":
        """The same with one entry of an axis, which stays."""
        place = list(self.axes).index(axis) + 1
        return Named(np.expand_dims(self.at(**{axis: name}), place), self.axes | {axis: (name,)})

    def rows(self, rows: np.ndarray) -> "Named":
        """Some of the rows, int or bool."""
        return Named(self.values[rows], self.axes)

    def forget(self, rows: np.ndarray, **names: str) -> None:
        """Set the entries named to unknown in some rows, bool [M]: NaN, or False where values are bool."""
        unknown = False if self.values.dtype == bool else np.nan
        self.at(**names)[rows] = unknown  # `at` is a view: names only ever choose single entries


def make_effects(deltas: np.ndarray, flips: np.ndarray, **axes: tuple[str, ...]) -> tuple[Named, Named]:
    """Copies of (deltas [M, axes, target, measure], flips [M, axes]) with their axes named."""
    measured = {"target": TARGETS, "measure": MEASURES}
    return Named(np.array(deltas), axes | measured), Named(np.array(flips), axes)


def measures_of(logits: jax.Array, target: jax.Array) -> jax.Array:
    """The MEASURES of logits [P, L] for target int [P], stacked: [measure, P]."""
    values = metrics.measures(logits, target)
    return jnp.stack([values[name] for name in MEASURES])


def changes(clean: jax.Array, changed: jax.Array, targets: jax.Array) -> jax.Array:
    """Effects of interventions on P pairs.

    Args:
      clean: logits [P, L] without the intervention.
      changed: logits [..., P, L] with each of them.
      targets: int [target, P].

    Returns:
      deltas [..., target, measure, P], changed minus clean.
    """

    def of_targets(logits):
        return jax.vmap(lambda target: measures_of(logits, target))(targets)

    flat = changed.reshape(-1, *clean.shape)
    deltas = jax.vmap(of_targets)(flat) - of_targets(clean)[None]
    return deltas.reshape(*changed.shape[:-2], *deltas.shape[1:])


def flips_of(predictions: jax.Array, changed: jax.Array) -> jax.Array:
    """Whether logits [..., P, L] predict something else than int [P], bool [..., P]."""
    predicted = jnp.argmax(changed, -1)
    return predicted != jnp.broadcast_to(predictions, predicted.shape)
