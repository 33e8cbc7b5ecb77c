"""What a run needs on each device, by arithmetic, before anything is made; and whether that is there.

With M = model axis, D = data axis, N vectors per step, per device and in bytes:

    state        w_enc, w_dec and their two Adam moments:         3 * 2 * F/(M D) * C * 4
                 (and the mean of the weights, where one is kept: 2 * F/(M D) * C * 4)
    gradients    of the matrices, and their new values:           2 * (F/M + F/(M D)) * C * 4
                 (and with D > 1 the matrices of all rows:        2 * F/M * C * 4)
    activations  dense: pre, features and their gradients:        4 * N/D * F/M * 4
                 sparse: pre-activations and their sorting:       2 * N/D * F/M * 4
    vectors      resident: all of them / D; streamed: two windows / D, as stored
"""

import dataclasses

import jax
from jax.sharding import Mesh

from jsae.runtime import memory

GIB = 2**30
_SAFE_SHARE = 0.9  # of a device's memory; the rest is left to the compiler and to fragments


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes on one device: parameters with Adam's moments, gradients, activations of a step, vectors."""

    state: int
    gradients: int
    activations: int
    vectors: int

    @property
    def total(self) -> int:
        return self.state + self.gradients + self.activations + self.vectors

    def __str__(self) -> str:
        names = ("state", "gradients", "activations", "vectors")
        parts = ", ".join(f"{name} {getattr(self, name) / GIB:.2f}" for name in names)
        return f"{self.total / GIB:.2f} GiB per device ({parts})"


def estimate(
    *,
    n_channels: int,
    n_features: int,
    batch_size: int,
    data: int,
    model: int,
    sparse: bool,
    vector_bytes: float,
    has_ema: bool = False,
) -> Estimate:
    """The estimate of the module's docstring; vector_bytes are those of all devices of the data axis."""
    matrices = 2 * (n_features // model) * n_channels * 4
    table = (batch_size // data) * (n_features // model) * 4
    return Estimate(
        state=(4 if has_ema else 3) * matrices // data,
        gradients=(2 if data > 1 else 1) * matrices + matrices // data,
        activations=(2 if sparse else 4) * table,
        vectors=int(vector_bytes / data),
    )


def of_device(mesh: Mesh) -> int | None:
    """Bytes that a device of the mesh has for this run, None where neither device nor system says.

    A GPU or TPU says so itself; CPU devices share what the host has available.
    """
    device = mesh.local_devices[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    if device.platform != "cpu":
        return None
    available = memory.available_bytes()
    return None if available is None else available // len(mesh.local_devices)


def fits(needed: Estimate, available: int | None) -> bool:
    """Whether the estimate is within what a device has; True where that is not known."""
    return available is None or needed.total <= _SAFE_SHARE * available


def check(needed: Estimate, available: int | None, mesh: Mesh, *, streamed: bool) -> None:
    """Raise ValueError, naming what to lower, unless the estimate fits."""
    if available is None or fits(needed, available):
        return
    advice = {
        "vectors": "lower sae.buffer_mib" if streamed else "set sae.store='streamed'",
        "activations": "lower sae.batch_size",
        "state": "lower sae.n_features or raise runtime.model_axis",
    }
    sizes = vars(needed) | {"state": needed.state + needed.gradients}
    largest = max(advice, key=lambda name: sizes[name])
    raise ValueError(
        f"training the SAE needs about {needed}, and a device has {available / GIB:.2f} GiB "
        f"({_SAFE_SHARE:.0%} of it may be used; mesh {dict(mesh.shape)}, {jax.device_count()} device(s)): "
        f"{advice[largest]}"
    )
