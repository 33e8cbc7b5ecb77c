"""A scaling plan by arithmetic: what one training step needs, moves and computes on each device of a mesh.

With D = data axis, M = model axis, N vectors per step, per device and in bytes of float32:

    memory      jsae.sae.memory
    over data   reduce-scatter of the gradients of w_enc and w_dec: 2 * F/(M D) * C * 4
                all-gather of both (half of it in bfloat16):        2 * F/M * C * 4
    over model  all-reduce of the reconstructions:                  N/D * C * 4
                all-gather of the candidates of TopK:               N/D * M * min(k, F/M) * 4
    products    dense: 10 * N/D * F/M * C; sparse: 2 * N/D * F/M * C + 8 * k * C * N/D / M operations

An all-reduce of b bytes over p devices sends 2 (p - 1) / p * b over each device's links, an all-gather whose
result has b bytes, or a reduce-scatter of as many, (p - 1) / p * b. AuxK adds another all-reduce of N/D * C
while features are dead.
"""

import dataclasses
from typing import Any

from jsae.sae import memory


@dataclasses.dataclass(frozen=True)
class Plan:
    """One topology.

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
    """The plan of one topology; k for the TopK variants, vector_bytes those of all devices together."""
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
