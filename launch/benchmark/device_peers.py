"""Other people's training steps on the device that torch finds, one JSON line.

    python launch/benchmark/device_peers.py timm|dictionary_learning N IMAGE_PX C F K FULL

Runs alone, in an environment that has torch and timm, or dictionary-learning 0.1.0 without its dependencies.
FULL=1 compiles with torch.compile, as they would be used; FULL=0 is a small network, to prove the script.
timm's ConvNeXt-Tiny has N images, resident and augmented by nothing; channels_last, bfloat16 autocast, fused
AdamW, a mean of the weights. dictionary_learning's TopK trainer has N vectors, its loss compiled, bfloat16
autocast.
"""

import copy
import importlib.util
import json
import sys
import time
import types
from collections.abc import Callable
from typing import Any


def timm_step(torch: Any, device: str, n: int, image_px: int, is_full: bool) -> Callable[[], Any]:
    """A function that takes one more training step."""
    import timm

    name = "convnext_tiny" if is_full else "convnext_atto"
    network = timm.create_model(name, num_classes=100, drop_path_rate=0.2)
    network = network.to(device=device, memory_format=torch.channels_last)
    mean = [weight.clone() for weight in copy.deepcopy(network).parameters()]
    adam = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.05, fused=device == "cuda")
    images = torch.randn(n, 3, image_px, image_px, device=device).to(memory_format=torch.channels_last)
    labels = torch.arange(n, device=device) % 100
    loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    forward = torch.compile(network) if is_full else network

    def step() -> Any:
        with torch.autocast(device, torch.bfloat16):
            value = loss(forward(images), labels)
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(mean, list(network.parameters()), 0.001)
        return value

    return step


def sae_step(torch: Any, device: str, n: int, c: int, f: int, k: int, is_full: bool) -> Callable[[], Any]:
    """A function that takes one more training step."""
    for name in ("nnsight", "datasets", "wandb"):  # imported by dictionary_learning, not by its trainers
        stub: Any = types.ModuleType(name)
        stub.LanguageModel = stub.load_dataset = object
        sys.modules.setdefault(name, stub)
    from dictionary_learning.trainers import top_k

    trainer = top_k.TopKTrainer(
        **{"steps": 10**6, "activation_dim": c, "dict_size": f, "k": k, "lr": 1e-4, "layer": 0},
        **{"lm_name": "none", "warmup_steps": 0, "decay_start": None, "seed": 0, "device": device},
    )
    x, steps = torch.randn(n, c, device=device), iter(range(10**6))
    trainer.update(next(steps), x)  # the first step's geometric median
    if is_full:
        trainer.loss = torch.compile(trainer.loss)

    def step() -> Any:
        with torch.autocast(device, torch.bfloat16):
            return trainer.update(next(steps), x)

    return step


def main(peer: str, *words: str) -> None:
    """Print {"ms", "items_per_s", "device", "compile_s"}, or what was left out."""
    n, image_px, c, f, k, is_full = map(int, words)
    missing = [name for name in ("torch", peer) if importlib.util.find_spec(name) is None]
    if missing:
        print(json.dumps({"left_out": f"{' and '.join(missing)}: not installed"}))
        return
    import torch

    device = "cuda" if torch.cuda.is_available() and is_full else "cpu"
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    torch.set_float32_matmul_precision("high")
    start = time.perf_counter()
    if peer == "timm":
        step = timm_step(torch, device, n, image_px, bool(is_full))
    else:
        step = sae_step(torch, device, n, c, f, k, bool(is_full))
    for _ in range(3):
        step()
    wait()
    row: dict[str, Any] = {"compile_s": time.perf_counter() - start}
    count = 20 if is_full else 2
    start = time.perf_counter()
    for _ in range(count):
        step()
    wait()
    row["ms"] = 1e3 * (time.perf_counter() - start) / count
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    print(json.dumps(row | {"items_per_s": n / row["ms"] * 1e3, "device": name}))


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv):
        print((__doc__ or "").strip())
        sys.exit()
    if len(sys.argv) != 8:
        sys.exit((__doc__ or "").strip())
    main(*sys.argv[1:])
