"""The section `classifier` of the benchmark: ConvNeXt forward and training, and its 7x7 convolution alone."""

import statistics
import time

import jax
import jax.numpy as jnp
import optax

from jsae import classifier
from jsae.classifier.families.convnext import depthwise
from launch.benchmark import turns

NETWORKS = {"atto_96_b32": ("atto", 96, 32), "tiny_224_b8": ("tiny", 224, 8)}
CONVOLUTIONS = {
    "depthwise": lambda x, kernel: depthwise.depthwise(
        x, kernel.astype(jnp.float32), jnp.zeros(kernel.shape[-1])
    ),
    "plain_depthwise": depthwise.conv,
}
N_CLASSES = 100


def rates(arch: str, size: int, batch: int, rounds: int, dtype: str, peers: str | None = None) -> dict:
    """Images/s, compile seconds and memory of one network, and images/s of peers.

    Beside them images/s of the depthwise convolution alone, with its gradients, at the shape of the first
    stage: ours, and plain lax.conv.
    """
    variants, row = {}, {}
    for name, (function, arguments) in _programs(arch, size, batch, dtype).items():
        start = time.perf_counter()
        compiled = jax.jit(function).lower(*arguments).compile()
        row[f"{name}_compile_s"] = time.perf_counter() - start
        memory = compiled.memory_analysis()
        if memory is not None:
            used = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
            row[f"{name}_peak_mib"] = used / 2**20
        variants[name] = lambda compiled=compiled, arguments=arguments: compiled(*arguments)
    found, theirs = [], []
    for _ in range(rounds):
        found.append(turns.alternate(variants, batch, 1))
        if peers:
            theirs += turns.peer_rows(peers, "convnext_peers.sh", arch, size, batch)
    for name in variants:
        row[f"{name}_images_per_s"] = statistics.median(rates[name] for rates in found)
    row["depthwise_over_plain"] = row["depthwise_images_per_s"] / row["plain_depthwise_images_per_s"]
    return row | (_beside_peers(row, theirs) if theirs else {})


def _programs(arch: str, size: int, batch: int, dtype: str) -> dict:
    """name -> (function, arguments) of what is timed."""
    made = classifier.make_model(arch, N_CLASSES)
    params = jax.jit(lambda key: classifier.init(key, made, kernels="fan_in", layer_scale=0.1))(
        jax.random.key(0)
    )
    images = jax.random.normal(jax.random.key(1), (batch, size, size, 3), dtype)
    labels = jnp.arange(batch) % N_CLASSES
    grid, channels = size // made.stem_stride, made.dims[0]
    maps = jax.random.normal(jax.random.key(2), (batch, grid, grid, channels), dtype)
    kernel = jax.random.normal(jax.random.key(3), (7, 7, channels), dtype)

    def forward(params, images):
        return params.model(params.variables, images)[0]  # of the products' default precision, as training is

    def train(params, images):
        def loss(variables):
            logits = forward(classifier.Params(variables, params.model), images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        return jax.value_and_grad(loss)(params.variables)

    def with_gradients(convolve):
        return jax.value_and_grad(lambda maps, kernel: convolve(maps, kernel).sum(), argnums=(0, 1))

    programs = {"forward": (forward, (params, images)), "train": (train, (params, images))}
    return programs | {name: (with_gradients(f), (maps, kernel)) for name, f in CONVOLUTIONS.items()}


def _beside_peers(row: dict, theirs: list[dict]) -> dict:
    """Images/s of timm in its faster memory layout, and ours over it."""
    found = {}
    for key in ("forward", "train"):
        by_layout = {}
        for their in theirs:
            by_layout.setdefault(their["layout"], []).append(their[f"{key}_images_per_s"])
        medians = {layout: statistics.median(rates) for layout, rates in by_layout.items()}
        layout = max(medians, key=medians.get)
        found[f"timm_{key}_images_per_s"], found[f"timm_{key}_layout"] = medians[layout], layout
        found[f"{key}_over_timm"] = row[f"{key}_images_per_s"] / medians[layout]
    return found
