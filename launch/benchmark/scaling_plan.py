"""Per-device memory and traffic of an SAE's training step on every topology of a number of devices.

    python -m launch.benchmark.scaling_plan    # F = 2^20, C = 1536, N = 16384, k = 64 on 64 devices
    python -m launch.benchmark.scaling_plan --features=131072 --devices=8 --memory_gib=80

Arithmetic only (jsae/sae/plan.py); tests/sae/test_plan.py holds it against a compiled 2 x 2 step.
"""

from absl import app, flags

from jsae.sae import plan
from launch import markdown, usage

_FEATURES = flags.DEFINE_integer("features", 2**20, "F.")
_CHANNELS = flags.DEFINE_integer("channels", 1536, "C.")
_BATCH = flags.DEFINE_integer("batch", 16384, "N, vectors of a step.")
_K = flags.DEFINE_integer("k", 64, "Active features per vector; 0 for a variant without.")
_DEVICES = flags.DEFINE_integer("devices", 64, "Devices.")
_MEMORY = flags.DEFINE_float("memory_gib", 80.0, "Memory of a device.")
_TERAFLOPS = flags.DEFINE_float("teraflops", 400.0, "Operations a device does in a second, in 1e12.")
_LINK = flags.DEFINE_float("link_gb_per_s", 50.0, "What a device sends in a second, in 1e9 bytes.")
_DENSE = flags.DEFINE_bool("dense", True, "The dense step; --nodense for the gathered one.")

GIB = 2**30


def rows() -> list[dict]:
    """The table's rows, one per topology."""
    plans = plan.topologies(
        _DEVICES.value,
        n_channels=_CHANNELS.value,
        n_features=_FEATURES.value,
        batch_size=_BATCH.value,
        sparse=not _DENSE.value,
        k=_K.value or None,
    )
    return [
        {
            "data x model": f"{p.data} x {p.model}",
            "state GiB": p.needed.state / GIB,
            "gradients GiB": p.needed.gradients / GIB,
            "activations GiB": p.needed.activations / GIB,
            "total GiB": p.needed.total / GIB,
            "fits": "yes" if p.needed.total < 0.9 * _MEMORY.value * GIB else "no",
            "sent GB": p.sent / 1e9,
            "compute ms": p.operations / _TERAFLOPS.value / 1e9,
            "sending ms": p.sent / _LINK.value / 1e6,
        }
        for p in plans
    ]


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    print(markdown.table(rows(), digits=3))


if __name__ == "__main__":
    usage.run(main)
