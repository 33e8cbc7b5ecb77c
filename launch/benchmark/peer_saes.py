"""Other people's SAEs on the vectors and settings that `compare_peers --vectors=FILE` wrote, as JSON lines.

    python launch/benchmark/peer_saes.py FILE.npz > peers.jsonl

Runs alone, in an environment with torch, einops, tqdm, scipy, dictionary-learning 0.1.0 and overcomplete
0.3.0 (the last two without their dependencies: only their trainers are imported). Vectors are normalised as
ours; k, F, batches, epochs, learning rate, warm-up and share of decay are ours, the decay is linear as
dictionary_learning has it. fvu and l0 are those of the test vectors, one by one, dead_fraction of train.
"""

import importlib.util
import json
import pathlib
import sys
import time
import types

import numpy as np


def _without_init(*names: str) -> None:
    """Packages whose modules can be imported without what their __init__ imports."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            sys.exit(f"error: {name} is not installed")
        sys.modules[name] = package = types.ModuleType(name)
        package.__path__ = list(spec.submodule_search_locations)


def _trainers(settings: dict, n_channels: int, n_steps: int, seed: int) -> dict:
    """(peer, variant) -> (function that takes a step, function that encodes and decodes)."""
    import torch

    _without_init("overcomplete")
    for name in ("nnsight", "datasets", "wandb"):  # imported by dictionary_learning, not by its trainers
        stub = types.ModuleType(name)
        stub.LanguageModel = stub.load_dataset = object
        sys.modules.setdefault(name, stub)
    from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k
    from overcomplete.sae.topk_sae import TopKSAE

    f, k, rate, warmup = (settings[n] for n in ("n_features", "k", "learning_rate", "lr_warmup_steps"))
    decay = round(settings["lr_decay_share"] * n_steps)
    shared = {"steps": n_steps, "activation_dim": n_channels, "dict_size": f, "k": k, "lr": rate, "layer": 0}
    shared |= {"lm_name": "none", "warmup_steps": warmup, "decay_start": n_steps - decay, "seed": seed}
    shared |= {"device": "cpu"}
    follow = {
        "threshold_start_step": n_steps // 2,
        "threshold_beta": 0.99,
    }  # 1000 steps are more than all here

    def of_dictionary_learning(trainer, **how):
        def there_and_back(x):
            feats = trainer.ae.encode(x, **how)
            return feats, trainer.ae.decode(feats)

        return trainer.update, there_and_back

    def of_overcomplete():
        torch.manual_seed(seed)
        sae = TopKSAE(n_channels, f, top_k=k)
        adam = torch.optim.Adam(sae.parameters(), rate)
        share = lambda i: min(i / warmup if i < warmup else 1.0, (n_steps - i) / max(decay, 1))  # noqa: E731
        schedule = torch.optim.lr_scheduler.LambdaLR(adam, share)

        def step(_, x):
            adam.zero_grad()
            (sae(x)[2] - x).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)  # as its train_sae does
            adam.step()
            schedule.step()

        def there_and_back(x):
            sae.eval()
            return sae(x)[1:]

        return step, there_and_back

    shares = np.diff(settings["prefix_shares"], prepend=0.0).tolist()
    nested = matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer
    return {
        ("dictionary_learning", "topk"): lambda: of_dictionary_learning(top_k.TopKTrainer(**shared)),
        ("dictionary_learning", "batch_topk"): lambda: of_dictionary_learning(
            batch_top_k.BatchTopKTrainer(**shared, **follow), use_threshold=True
        ),
        ("dictionary_learning", "matryoshka"): lambda: of_dictionary_learning(
            nested(**shared, **follow, group_fractions=shares), use_threshold=True
        ),
        ("overcomplete", "topk"): of_overcomplete,
    }


def train(path: str) -> None:
    """Train every peer for every seed and print a line after each."""
    import torch

    file = np.load(path, allow_pickle=False)
    settings = json.loads(str(file["settings"]))
    vectors = {name: torch.from_numpy(file[name]) for name in ("train", "test")}
    x, n = vectors["train"], settings["batch_size"]
    per_epoch = -(-len(x) // n)
    n_steps = round(settings["n_epochs"] * per_epoch)
    for seed in range(settings["n_seeds"]):
        for (peer, variant), make in _trainers(settings, x.shape[1], n_steps, seed).items():
            step, there_and_back = make()
            order, start = torch.Generator().manual_seed(seed), time.monotonic()
            for i in range(n_steps):
                if i % per_epoch == 0:
                    rows = torch.randperm(len(x), generator=order)
                step(i, x[rows[i % per_epoch * n :][:n]])
            row = {"peer": peer, "variant": variant, "seed": seed, "seconds": time.monotonic() - start}
            with torch.no_grad():
                feats, x_hat = there_and_back(vectors["test"])
                error = (vectors["test"] - x_hat).double().square().sum()
                spread = (vectors["test"] - vectors["test"].mean(0)).double().square().sum()
                row |= {"fvu": float(error / spread), "l0": float((feats != 0).double().sum(1).mean())}
                row["dead_fraction"] = float((there_and_back(x)[0] == 0).all(0).double().mean())
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__.strip())
        sys.exit()
    if len(sys.argv) != 2 or not pathlib.Path(sys.argv[1]).exists():
        sys.exit(__doc__.strip())
    train(sys.argv[1])
