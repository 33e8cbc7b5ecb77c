"""What an SAE's training step needs, moves and computes on each device, on every mesh of some devices.

    python -m launch.benchmark.scaling_plan    # F = 2^20, C = 1536, N = 16384, k = 64 on 64 devices
    python -m launch.benchmark.scaling_plan --device=v5e --features=131072 --devices=8

By arithmetic, for bfloat16 products. With D = data axis, M = model axis, N vectors per step, per device:

    memory      jsae.sae.memory
    over data   reduce-scatter of the gradients of w_enc and w_dec: 2 * F/(M D) * C * 4 bytes
                all-gather of both (half of it in bfloat16):        2 * F/M * C * 4
    over model  all-reduce of the reconstructions:                  N/D * C * 4
                all-gather of the candidates of TopK:               N/D * M * min(k, F/M) * 4
    products    dense: 10 * N/D * F/M * C; sparse: 2 * N/D * F/M * C + 8 * k * C * N/D / M operations
    bytes       dense: (a / D + b) * 2 * F/M * C + c * N/D * F/M, with a, b, c from compiled steps (`COUNTED`)

An all-reduce of b bytes over p devices sends 2 (p - 1) / p * b over each device's links, an all-gather whose
result has b bytes, or a reduce-scatter of as many, (p - 1) / p * b. AuxK adds another all-reduce of N/D * C
while features are dead. A step takes at least the largest of products, bytes and sending, at most their sum.

docs/scaling.md has these numbers beside those of compiled programs; tests/sae/test_plan.py holds them against
a compiled 2 x 2 step.
"""

import dataclasses
from typing import Any

from absl import app, flags

from jsae.sae import memory
from launch import markdown, usage
from launch.benchmark.peaks import PEAKS

_FEATURES = flags.DEFINE_integer("features", 2**20, "F.")
_CHANNELS = flags.DEFINE_integer("channels", 1536, "C.")
_BATCH = flags.DEFINE_integer("batch", 16384, "N, vectors of a step.")
_K = flags.DEFINE_integer("k", 64, "Active features per vector; 0 for a variant without.")
_DEVICES = flags.DEFINE_integer("devices", 64, "Devices.")
_DEVICE = flags.DEFINE_enum("device", "h200", sorted(PEAKS), "Device whose data sheet is taken.")
_DENSE = flags.DEFINE_bool("dense", True, "The dense step; --nodense for the gathered one.")

# Of a dense TopK step in bfloat16, bytes per parameter of w_enc and w_dec that a device holds, per parameter
# that it gathers, per vector and feature where a kernel selects, and where passes over all features do: F on
# more than one device, or above 2^16. Fitted to "gb" of sae_topk_n(4096|16384)_bf16 of --only=compile: on an
# H200 within 13%, at F = 2^17 up to a quarter too many. On a v5e to two steps on one device, of whose state
# fast memory holds most: too few for larger ones, too many for small shards.
COUNTED = {"h200": (49.8, 30.1, 33.9, 143.0), "v5e": (4.7, 0.0, 35.5, 35.5)}


@dataclasses.dataclass(frozen=True)
class Plan:
    """One mesh.

    Attributes:
      data, model: the mesh.
      needed: memory per device.
      over_data, over_model: results of the collectives of a step, bytes per device.
      sent: bytes a device sends for them.
      operations: floating-point operations of a step, per device.
    """

    data: int
    model: int
    needed: memory.Estimate
    over_data: int
    over_model: int
    sent: int
    operations: int


def plan(
    *,
    n_channels: int,
    n_features: int,
    batch_size: int,
    data: int,
    model: int,
    sparse: bool,
    k: int | None = None,
    vector_bytes: float = 0.0,
) -> Plan:
    """The plan of one mesh; k for the TopK variants, vector_bytes those of all devices together."""
    needed = memory.estimate(
        n_channels=n_channels,
        n_features=n_features,
        batch_size=batch_size,
        data=data,
        model=model,
        sparse=sparse,
        vector_bytes=vector_bytes,
    )
    rows, features = batch_size // data, n_features // model
    matrices = 2 * features * n_channels * 4 if data > 1 else 0
    recon = rows * n_channels * 4 if model > 1 else 0
    candidates = rows * model * min(k, features) * 4 if k and model > 1 else 0
    sent = 2 * (data - 1) * matrices / data + (2 * recon + candidates) * (model - 1) / model
    dense = 2 * rows * features * n_channels
    return Plan(
        data=data,
        model=model,
        needed=needed,
        over_data=matrices + matrices // data,
        over_model=recon + candidates,
        sent=int(sent),
        operations=dense + 8 * rows * (k or 0) * n_channels // model if sparse else 5 * dense,
    )


def topologies(n_devices: int, **settings: Any) -> list[Plan]:
    """The plan of every way to split the devices in powers of two."""
    models = [2**i for i in range(n_devices.bit_length()) if n_devices % 2**i == 0]
    return [plan(data=n_devices // model, model=model, **settings) for model in models]


def row(p: Plan, target: str, n_channels: int, n_features: int, batch_size: int) -> dict[str, Any]:
    """A line of the table: a plan on a device."""
    peak, (held, gathered, alone, passes) = PEAKS[target], COUNTED[target]
    features, cells = n_features // p.model, batch_size // p.data * (n_features // p.model)
    by_cell = alone if p.model == 1 and n_features <= 2**16 else passes
    moved = (held / p.data + gathered) * 2 * features * n_channels + by_cell * cells
    times = {
        "products": 1e3 * p.operations / peak.flops_per_s["bf16"],
        "bytes": 1e3 * moved / peak.bytes_per_s,
        "sending": 1e3 * p.sent / peak.link_bytes_per_s,
    }
    return {
        "data x model": f"{p.data} x {p.model}",
        "state GiB": p.needed.state / memory.GIB,
        "total GiB": p.needed.total / memory.GIB,
        "fits": "yes" if p.needed.total < 0.9 * peak.memory_gib * memory.GIB else "no",
        **{f"{name} ms": time for name, time in times.items()},
        "bound by": max(times, key=lambda name: times[name]),
    }


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    sizes = {"n_channels": _CHANNELS.value, "n_features": _FEATURES.value, "batch_size": _BATCH.value}
    plans = topologies(_DEVICES.value, sparse=not _DENSE.value, k=_K.value or None, **sizes)
    print(markdown.table([row(p, _DEVICE.value, **sizes) for p in plans], digits=3))


if __name__ == "__main__":
    usage.run(main)
