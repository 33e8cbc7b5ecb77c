"""What the data sheets of accelerators promise, per device."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Peak:
    """One device.

    Attributes:
      bytes_per_s: of its memory.
      flops_per_s: of dense products by exactness: "bf16", "f32" (float32 asked for) and "default" (float32
        operands multiplied as the device likes best).
      memory_gib: of its memory.
      link_bytes_per_s: that it sends to its neighbours on one mesh axis.
    """

    bytes_per_s: float
    flops_per_s: Mapping[str, float]
    memory_gib: float
    link_bytes_per_s: float


PEAKS = {
    # SXM; "default" is TF32; NVLink inside a box of eight, between boxes about a ninth of it
    "h200": Peak(4.8e12, {"bf16": 989e12, "default": 494e12, "f32": 67e12}, 141e9 / 2**30, 450e9),
    # float32 takes six passes of bfloat16; of 1,600 Gb/s of links half lie along one axis of the torus
    "v5e": Peak(819e9, {"bf16": 197e12, "default": 197e12, "f32": 197e12 / 6}, 16.0, 100e9),
}
