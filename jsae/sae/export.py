"""The SAE as two files that SAELens reads: cfg.json and sae_weights.safetensors.

SAELens knows no constants of scaling, so they are folded into the weights; the features are then those
of `encode`, in raw units, and the reconstruction is that of `decode`:

    W_enc = w_enc.T [C, F]    b_enc = s * b_enc    W_dec = w_dec [F, C]    b_dec = s * b_dec + mean

with apply_b_dec_to_input true and normalize_activations "none". By variant:

    relu_l1                  standard
    topk                     topk       k, and rescale_acts_by_decoder_norm false
    batch_topk, matryoshka   jumprelu   threshold = s * threshold for all features, as SAELens itself does
    jumprelu                 jumprelu   threshold = s * threshold
    gated                    gated      b_gate = s * b_enc, b_mag = s * b_mag, r_mag

`load` reads such a folder back as an SAE with mean 0 and scale 1, ours or another library's. A batch_topk
or matryoshka SAE comes back as the jumprelu SAE that computes the same.
"""

import tempfile

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from jsae.runtime import artifacts, paths
from jsae.sae import model, variants

ARCHITECTURES = {
    "relu_l1": "standard",
    "topk": "topk",
    "batch_topk": "jumprelu",
    "jumprelu": "jumprelu",
    "matryoshka": "jumprelu",
    "gated": "gated",
}
_READ_AS = {"standard": "relu_l1", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"}
# The variant's own arrays in the file, all [F]; those in units of activations are folded with the scale.
_OWN = {"jumprelu": ("threshold",), "gated": ("b_mag", "r_mag")}
_SCALED = ("threshold", "b_mag")


def save(folder, sae: model.SAE, *, metadata: dict | None = None) -> None:
    """Write folder/cfg.json and folder/sae_weights.safetensors.

    Args:
      folder: any etils path.
      sae: the SAE, on the host or on devices whose arrays this process can read.
      metadata: what else cfg.json should say, for example the site.
    """
    folder, architecture = paths.resolve(folder), ARCHITECTURES[sae.variant]
    config = {
        "architecture": architecture,
        "d_in": sae.n_channels,
        "d_sae": sae.n_features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"jsae_variant": sae.variant} | (metadata or {}),
    }
    if architecture == "topk":
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    w_enc, b_enc, w_dec, b_dec, mean, scale = (
        np.asarray(getattr(sae, name), np.float64)
        for name in ("w_enc", "b_enc", "w_dec", "b_dec", "mean", "scale")
    )
    bias = _bias_name(architecture)
    weights = {"W_enc": w_enc.T, bias: scale * b_enc, "W_dec": w_dec, "b_dec": scale * b_dec + mean}
    for name in _OWN.get(architecture, ()):
        value = np.broadcast_to(np.asarray(sae.own[name], np.float64), (sae.n_features,))
        weights[name] = scale * value if name in _SCALED else value
    weights = {name: np.ascontiguousarray(array, np.float32) for name, array in weights.items()}
    artifacts.write_bytes(folder / "sae_weights.safetensors", safetensors.numpy.save(weights), checked=True)
    artifacts.write_json(folder / "cfg.json", config, checked=True)


def load(folder) -> model.SAE:
    """Read an exported folder as an SAE with mean 0 and scale 1.

    With rescale_acts_by_decoder_norm the decoder's norms are folded into the encoder, so features are
    SAELens' own; without apply_b_dec_to_input, b_dec is folded into the encoder's bias.

    Raises:
      FileNotFoundError: one of the two files is missing.
      ValueError: an architecture or a setting this format has and jsae has not, missing or misshapen
        weights; the message names it and what is expected.
    """
    folder = paths.resolve(folder)
    files = folder / "cfg.json", folder / "sae_weights.safetensors"
    for path in files:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; an exported SAE has it")
    config, weights = artifacts.read_json(files[0]), _read_weights(files[1])
    architecture = config.get("architecture")
    if architecture not in _READ_AS:
        raise ValueError(
            f"{files[0]}: architecture {architecture!r} is unknown; "
            f"the architectures are {', '.join(_READ_AS)}"
        )
    for key in ("normalize_activations", "reshape_activations"):
        if config.get(key, "none") != "none":
            raise ValueError(f"{files[0]}: {key} is {config[key]!r}; only 'none' can be read")
    variant, k = _READ_AS[architecture], None
    if architecture == "topk":
        k = config.get("k", config.get("activation_fn_kwargs", {}).get("k"))
    c, f = config["d_in"], config["d_sae"]
    variants.check(variant, n_channels=c, n_features=f, k=k)
    bias, own_names = _bias_name(architecture), _OWN.get(architecture, ())
    shapes = {"W_enc": (c, f), bias: (f,), "W_dec": (f, c), "b_dec": (c,)} | dict.fromkeys(own_names, (f,))
    for name, shape in shapes.items():
        if name not in weights or weights[name].shape != shape:
            found = weights[name].shape if name in weights else "nothing"
            raise ValueError(f"{files[1]}: {name} should have shape {shape}; found {found}")
    arrays = {name: np.asarray(weights[name], np.float64) for name in shapes}
    w_enc, w_dec, b_enc, b_dec = (arrays[name] for name in ("W_enc", "W_dec", bias, "b_dec"))
    own = {name: arrays[name] for name in own_names}
    if not config.get("apply_b_dec_to_input", True):
        shift = b_dec @ w_enc  # [F]
        b_enc = b_enc + shift
        if architecture == "gated":  # b_mag is not seen through b_enc there
            own["b_mag"] = own["b_mag"] + np.exp(own["r_mag"]) * shift
    if config.get("rescale_acts_by_decoder_norm", False):
        norms = np.linalg.norm(w_dec, axis=1)  # [F]
        w_enc, b_enc = w_enc * norms[None, :], b_enc * norms
        w_dec = w_dec / np.where(norms > 0, norms, 1.0)[:, None]
    return model.SAE(
        w_enc=jnp.asarray(w_enc.T, jnp.float32),
        b_enc=jnp.asarray(b_enc, jnp.float32),
        w_dec=jnp.asarray(w_dec, jnp.float32),
        b_dec=jnp.asarray(b_dec, jnp.float32),
        mean=jnp.zeros(c, jnp.float32),
        scale=jnp.ones((), jnp.float32),
        variant=variant,
        k=k,
        own={name: jnp.asarray(value, jnp.float32) for name, value in own.items()},
    )


def _read_weights(path) -> dict[str, np.ndarray]:
    """The arrays of a .safetensors file, bfloat16 among them, which only its reader of files knows."""
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as copy:
        copy.write(artifacts.read_bytes(path))
        copy.flush()
        try:
            return safetensors.numpy.load_file(copy.name)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file, or it is damaged ({error})") from error


def _bias_name(architecture: str) -> str:
    return "b_gate" if architecture == "gated" else "b_enc"
