"""Compare exported SAEs with sae-lens itself: `python -m launch.benchmark.compare_saelens FOLDER...`.

Needs `pip install sae-lens` (its torch on CPU), which jsae does not; without a folder one random SAE of each
variant is exported, with a mean and a scale far from 0 and 1. Prints the largest difference of features and
reconstructions, relative to the largest value, over random activations drawn around the decoder's bias. A
feature whose pre-activation lies within float32 of its threshold may be on here and off there; those are
counted apart.
"""

import importlib.util
import pathlib
import sys
import tempfile

import numpy as np

from launch import usage


def random_exports(folder: pathlib.Path) -> list[pathlib.Path]:
    """Export one random SAE of each variant below `folder`; their folders."""
    import jax
    import jax.numpy as jnp

    from jsae import sae
    from jsae.sae import export

    rng, folders = np.random.default_rng(0), []
    for variant in sae.VARIANTS:
        model = sae.init(
            jax.random.key(0),
            n_channels=320,
            n_features=1280,
            variant=variant,
            mean=300 * rng.normal(size=320),
            scale=37.0,
        )
        draw = lambda a, size: jnp.asarray(a + size * rng.normal(size=a.shape), jnp.float32)  # noqa: E731
        fields = {"w_enc": draw(model.w_enc, 0.05), "b_enc": draw(model.b_enc, 0.1)}
        fields |= {"b_dec": draw(model.b_dec, 0.2)}
        fields["own"] = {name: jnp.abs(draw(value, 0.3)) for name, value in model.own.items()}
        model = sae.SAE(**(vars(model) | fields))
        folders.append(folder / variant)
        export.save(folders[-1], model)
    return folders


def compare(folder: pathlib.Path, n_vectors: int = 2048) -> tuple[float, float, int, float]:
    """(largest difference of features, of reconstructions, both relative; features that flipped; l0)."""
    import torch
    from sae_lens import SAE

    from jsae.sae import export

    ours, theirs = export.load(folder), SAE.load_from_disk(str(folder), device="cpu")
    rng, bias = np.random.default_rng(1), np.asarray(ours.b_dec)
    spread = np.std(bias) / 8
    x = (bias[None, :] + spread * rng.normal(size=(n_vectors, len(bias)))).astype(np.float32)
    with torch.no_grad():
        feats = theirs.encode(torch.from_numpy(x)).numpy()
        x_hat = theirs.decode(torch.from_numpy(feats)).numpy()
    found = np.asarray(ours.encode(x))
    flipped = (found != 0) != (feats != 0)
    features = np.abs(np.where(flipped, 0, found - feats)).max() / np.abs(feats).max()
    reconstructions = np.abs(np.asarray(ours.decode(feats)) - x_hat).max() / np.abs(x_hat).max()
    return float(features), float(reconstructions), int(flipped.sum()), (feats != 0).sum() / n_vectors


def main() -> None:
    if usage.wants_help(sys.argv):
        usage.show_help()
    for word in sys.argv[1:]:
        if word.startswith("-"):
            sys.exit(f"error: there is no flag {word}; give folders of exported SAEs, or nothing")
        if not pathlib.Path(word, "cfg.json").exists():
            sys.exit(f"error: {word} holds no exported SAE (cfg.json); WORKDIR/sae/export is one")
    if not all(importlib.util.find_spec(name) for name in ("torch", "sae_lens")):
        sys.exit("error: sae-lens is not installed, which this compares with: pip install sae-lens")
    with tempfile.TemporaryDirectory() as made:
        for folder in [pathlib.Path(a) for a in sys.argv[1:]] or random_exports(pathlib.Path(made)):
            features, recon, flipped, l0 = compare(folder)
            print(
                f"{folder.name}: features {features:.1e}, x_hat {recon:.1e}, flipped {flipped} at l0 {l0:.1f}"
            )


if __name__ == "__main__":
    main()
