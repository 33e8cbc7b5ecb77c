"""The SAE as two files that SAELens reads: cfg.json and sae_weights.safetensors.

SAELens knows no constants of scaling, so they are folded into the weights; the features are then those
of `encode`, in raw units, and the reconstruction is that of `decode`:

    W_enc = w_enc.T [C, F]    b_enc = s * b_enc    W_dec = w_dec [F, C]    b_dec = s * b_dec + mean

with apply_b_dec_to_input true, normalize_activations "none" and, where decoder norms could matter
(topk), rescale_acts_by_decoder_norm false. `load` reads such a folder back as an SAE with mean 0 and
scale 1, ours or another library's of the same two architectures.
"""

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from etils import epath

from jsae.runtime import artifacts
from jsae.sae import model, variants

ARCHITECTURES = {"relu_l1": "standard", "topk": "topk"}
_WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")


def save(folder, sae: model.SAE, *, metadata: dict | None = None) -> None:
    """Write folder/cfg.json and folder/sae_weights.safetensors.

    Args:
      folder: any etils path.
      sae: the SAE, on the host or on devices whose arrays this process can read.
      metadata: what else cfg.json should say, for example the site.
    """
    folder = epath.Path(folder)
    config = {
        "architecture": ARCHITECTURES[sae.variant],
        "d_in": sae.n_channels,
        "d_sae": sae.n_features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": metadata or {},
    }
    if sae.variant == "topk":
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    w_enc, b_enc, w_dec, b_dec, mean, scale = (
        np.asarray(getattr(sae, name), np.float64)
        for name in ("w_enc", "b_enc", "w_dec", "b_dec", "mean", "scale")
    )
    weights = {"W_enc": w_enc.T, "b_enc": scale * b_enc, "W_dec": w_dec, "b_dec": scale * b_dec + mean}
    weights = {name: np.ascontiguousarray(array, np.float32) for name, array in weights.items()}
    artifacts.write_bytes(folder / "sae_weights.safetensors", safetensors.numpy.save(weights))
    artifacts.write_json(folder / "cfg.json", config)


def load(folder) -> model.SAE:
    """Read an exported folder as an SAE with mean 0 and scale 1.

    Raises:
      FileNotFoundError: one of the two files is missing.
      ValueError: an architecture or a setting this format has and jsae has not, missing or misshapen
        weights; the message names it and what is expected.
    """
    folder = epath.Path(folder)
    paths = folder / "cfg.json", folder / "sae_weights.safetensors"
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; an exported SAE has it")
    config, weights = artifacts.read_json(paths[0]), safetensors.numpy.load(paths[1].read_bytes())
    by_architecture = {architecture: variant for variant, architecture in ARCHITECTURES.items()}
    variant = by_architecture.get(config.get("architecture"))
    if variant is None:
        raise ValueError(
            f"{paths[0]}: architecture {config.get('architecture')!r} is unknown; "
            f"the architectures are {', '.join(by_architecture)}"
        )
    for key, expected in (("normalize_activations", "none"), ("rescale_acts_by_decoder_norm", False)):
        if config.get(key, expected) != expected:
            raise ValueError(f"{paths[0]}: {key} is {config[key]!r}; only {expected!r} can be read")
    k = None
    if variant == "topk":
        k = config.get("k", config.get("activation_fn_kwargs", {}).get("k"))
    c, f = config["d_in"], config["d_sae"]
    variants.check(variant, n_channels=c, n_features=f, k=k)
    shapes = dict(zip(_WEIGHTS, ((c, f), (f,), (f, c), (c,)), strict=True))
    for name, shape in shapes.items():
        if name not in weights or weights[name].shape != shape:
            found = weights[name].shape if name in weights else "nothing"
            raise ValueError(f"{paths[1]}: {name} should have shape {shape}; found {found}")
    w_enc, b_enc, w_dec, b_dec = (np.asarray(weights[name], np.float64) for name in _WEIGHTS)
    if not config.get("apply_b_dec_to_input", True):
        b_enc = b_enc + b_dec @ w_enc
    return model.SAE(
        w_enc=jnp.asarray(w_enc.T, jnp.float32),
        b_enc=jnp.asarray(b_enc, jnp.float32),
        w_dec=jnp.asarray(w_dec, jnp.float32),
        b_dec=jnp.asarray(b_dec, jnp.float32),
        mean=jnp.zeros(c, jnp.float32),
        scale=jnp.ones((), jnp.float32),
        variant=variant,
        k=k,
    )
