"""The SAE as two files that SAELens reads: cfg.json and sae_weights.safetensors.

SAELens knows no constants of scaling, so they are folded into the weights; the features are then those
of `encode`, in raw units, and the reconstruction is that of `decode`:

    W_enc = w_enc.T [C, F]    b_enc = s * b_enc    W_dec = w_dec [F, C]    b_dec = s * b_dec + mean

with apply_b_dec_to_input true and normalize_activations "none". A variant's `saelens` names its architecture
and its arrays there, those in units of the activations times s:

    relu_l1                  standard
    topk                     topk       k, and rescale_acts_by_decoder_norm false
    batch_topk, matryoshka   jumprelu   threshold, for all features the same, as SAELens itself does
    jumprelu                 jumprelu   threshold
    gated                    gated      b_gate for b_enc, b_mag, r_mag

`load` reads such a folder back as an SAE with mean 0 and scale 1, ours or another library's. A batch_topk
or matryoshka SAE comes back as the jumprelu SAE that computes the same.
"""

import os
import tempfile

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from jsae.runtime import artifacts, paths
from jsae.sae import model, variants


def save(folder: os.PathLike | str, sae: model.SAE, *, metadata: dict | None = None) -> None:
    """Write folder/cfg.json and folder/sae_weights.safetensors.

    Args:
      folder: any etils path.
      sae: the SAE, on the host or on devices whose arrays this process can read.
      metadata: what else cfg.json should say, for example the site.
    """
    folder, form = paths.resolve(folder), sae.variant.saelens
    config = {
        "architecture": form.architecture,
        "d_in": sae.n_channels,
        "d_sae": sae.n_features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"jsae_variant": sae.variant.name} | (metadata or {}),
    } | sae.variant.to_saelens()
    w_enc, b_enc, w_dec, b_dec, mean, scale = (
        np.asarray(getattr(sae, name), np.float64)
        for name in ("w_enc", "b_enc", "w_dec", "b_dec", "mean", "scale")
    )
    weights = {"W_enc": w_enc.T, form.bias: scale * b_enc, "W_dec": w_dec, "b_dec": scale * b_dec + mean}
    for name, is_scaled in form.arrays.items():
        value = np.broadcast_to(np.asarray(sae.own[name], np.float64), (sae.n_features,))
        weights[name] = scale * value if is_scaled else value
    weights = {name: np.ascontiguousarray(array, np.float32) for name, array in weights.items()}
    artifacts.write_bytes(folder / "sae_weights.safetensors", safetensors.numpy.save(weights), checked=True)
    artifacts.write_json(folder / "cfg.json", config, checked=True)


def load(folder: os.PathLike | str) -> model.SAE:
    """Read an exported folder as an SAE with mean 0 and scale 1.

    With rescale_acts_by_decoder_norm the decoder's norms are folded into the encoder, so features are
    those of SAELens; without apply_b_dec_to_input, b_dec is folded into the encoder's bias.

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
    readers = {v.saelens.architecture: v for v in variants.VARIANTS.values() if v.saelens.is_read}
    if architecture not in readers:
        raise ValueError(
            f"{files[0]}: architecture {architecture!r} is unknown; "
            f"the architectures are {', '.join(readers)}"
        )
    for key in ("normalize_activations", "reshape_activations"):
        if config.get(key, "none") != "none":
            raise ValueError(f"{files[0]}: {key} is {config[key]!r}; only 'none' can be read")
    variant = readers[architecture].from_saelens(config)
    c, f, form = config["d_in"], config["d_sae"], variant.saelens
    variant.check(f)
    shapes = {"W_enc": (c, f), form.bias: (f,), "W_dec": (f, c), "b_dec": (c,)}
    shapes |= dict.fromkeys(form.arrays, (f,))
    for name, shape in shapes.items():
        if name not in weights or weights[name].shape != shape:
            found = weights[name].shape if name in weights else "nothing"
            raise ValueError(f"{files[1]}: {name} should have shape {shape}; found {found}")
    arrays = {name: np.asarray(weights[name], np.float64) for name in shapes}
    w_enc, w_dec, b_enc, b_dec = (arrays[name] for name in ("W_enc", "W_dec", form.bias, "b_dec"))
    own = {name: arrays[name] for name in form.arrays}
    if not config.get("apply_b_dec_to_input", True):
        shift = b_dec @ w_enc  # [F]
        b_enc, own = b_enc + shift, variant.fold_input_bias(own, shift)
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
