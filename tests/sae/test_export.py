"""The exported files: SAELens' own arithmetic on them equals encode and decode, and they come back."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jsae import sae
from jsae.sae import export

READ_AS = {name: name for name in sae.VARIANTS} | {"batch_topk": "jumprelu", "matryoshka": "jumprelu"}
ARCHITECTURES = {
    "relu_l1": "standard",
    "topk": "topk",
    "batch_topk": "jumprelu",
    "matryoshka": "jumprelu",
    "jumprelu": "jumprelu",
    "gated": "gated",
}


def as_from_elsewhere(folder, config):
    """Another cfg.json, and no checksums: what a folder is like that another program has written."""
    (folder / "cfg.json").write_text(json.dumps(config))
    (folder / "checksums.json").unlink(missing_ok=True)


def saelens(folder, x):
    """What SAELens computes from cfg.json and the weights (apply_b_dec_to_input), in float64.

    Returns features, reconstructions, and how far each pre-activation is from where a feature switches.
    """
    weights = safetensors.numpy.load_file(folder / "sae_weights.safetensors")
    weights = {name: array.astype(np.float64) for name, array in weights.items()}
    config = json.loads((folder / "cfg.json").read_text())
    kind, at = config["architecture"], x.astype(np.float64) - weights["b_dec"][None, :]
    gap = np.inf
    if kind == "gated":
        gate = at @ weights["W_enc"] + weights["b_gate"][None, :]
        mag = at @ (weights["W_enc"] * np.exp(weights["r_mag"])[None, :]) + weights["b_mag"][None, :]
        feats, gap = (gate > 0) * np.maximum(mag, 0), np.abs(gate)
    else:
        pre = at @ weights["W_enc"] + weights["b_enc"][None, :]
        feats = np.maximum(pre, 0)
        if kind == "topk":
            np.put_along_axis(feats, np.argsort(-pre, axis=1, kind="stable")[:, config["k"] :], 0, axis=1)
        if kind == "jumprelu":
            feats, gap = (
                feats * (pre > weights["threshold"][None, :]),
                np.abs(pre - weights["threshold"][None, :]),
            )
    return feats, feats @ weights["W_dec"] + weights["b_dec"][None, :], gap


@pytest.mark.parametrize("variant", list(sae.VARIANTS))
def test_the_files_hold_the_same_sae_in_raw_units(variant, examples, tmp_path):
    model, x = examples.make(variant), examples.activations((400,))
    export.save(tmp_path, model, metadata={"site": "stage4"})
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config["architecture"] == ARCHITECTURES[variant]
    assert (config["d_in"], config["d_sae"]) == (examples.C, examples.F)
    assert config["apply_b_dec_to_input"] is True
    assert config["normalize_activations"] == "none"
    assert config.get("k") == (model.k if variant == "topk" else None)
    assert config.get("rescale_acts_by_decoder_norm", False) is False
    assert config["metadata"] == {"jsae_variant": variant, "site": "stage4"}
    feats, x_hat, gap = saelens(tmp_path, x)
    # Where float32 may take the other side of a jump no tolerance helps: 1e-4 of the largest feature
    sure = np.broadcast_to(gap > 1e-4 * feats.max(), feats.shape)
    assert sure.mean() > 0.995
    rows = sure.all(axis=1)
    assert rows.sum() > 300
    # 1e-5 of the largest value: float32 keeps about 5 digits of x - mean with |mean| near 500
    assert np.abs(np.where(sure, model.encode(x) - feats, 0)).max() < 1e-5 * feats.max()
    assert np.abs(model.decode(feats) - x_hat).max() < 1e-5 * np.abs(x_hat).max()

    back = export.load(tmp_path)
    assert (back.variant.name, back.n_features) == (READ_AS[variant], examples.F)
    assert back.k == (model.k if variant == "topk" else None)
    assert np.abs(np.where(sure, back.encode(x) - feats, 0)).max() < 1e-5 * feats.max()
    assert np.abs(back.decode(back.encode(x)) - x_hat)[rows].max() < 1e-5 * np.abs(x_hat).max()
    export.save(tmp_path / "again", back)
    assert json.loads((tmp_path / "again" / "cfg.json").read_text())["architecture"] == ARCHITECTURES[variant]
    first, second = (
        safetensors.numpy.load_file(p / "sae_weights.safetensors") for p in (tmp_path, tmp_path / "again")
    )
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_allclose(second[name], array, rtol=1e-6)


def test_what_cannot_be_read_is_named(examples, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cfg\.json"):
        export.load(tmp_path)
    export.save(tmp_path, examples.make())
    good = json.loads((tmp_path / "cfg.json").read_text())
    for change, message in (
        ({"architecture": "temporal"}, "'temporal' is unknown; the architectures are standard, topk, jump"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'"),
        ({"reshape_activations": "hook_z"}, "reshape_activations is 'hook_z'"),
        ({"architecture": "jumprelu"}, "threshold should have shape"),
        ({"architecture": "gated"}, "b_gate should have shape"),
        ({"d_in": examples.C + 1}, "W_enc should have shape"),
        ({"k": 0}, "k in 1"),
    ):
        as_from_elsewhere(tmp_path, good | change)
        with pytest.raises(ValueError, match=message):
            export.load(tmp_path)


@pytest.mark.parametrize("variant", ["relu_l1", "gated"])
def test_a_decoder_bias_that_is_not_subtracted_from_the_input_is_folded_in(variant, examples, tmp_path):
    export.save(tmp_path, examples.make(variant))
    config = json.loads((tmp_path / "cfg.json").read_text())
    as_from_elsewhere(tmp_path, config | {"apply_b_dec_to_input": False})
    weights = safetensors.numpy.load_file(tmp_path / "sae_weights.safetensors")
    x = examples.activations() / 100  # the bias of the gate is hardly felt at the full size
    pre = x.astype(np.float64) @ weights["W_enc"]
    if variant == "relu_l1":
        expected = np.maximum(pre + weights["b_enc"][None, :], 0)
    else:
        mag = pre * np.exp(weights["r_mag"].astype(np.float64))[None, :] + weights["b_mag"][None, :]
        expected = (pre + weights["b_gate"][None, :] > 0) * np.maximum(mag, 0)
    # back.encode adds and subtracts b_dec near 500 in float32: its last digit is 3e-5
    assert np.abs(export.load(tmp_path).encode(x) - expected).max() < 1e-5 * np.abs(weights["b_dec"]).max()


def test_acts_rescaled_by_decoder_norms_are_read_as_saelens_reads_them(examples, tmp_path):
    export.save(tmp_path, examples.make("topk"))
    config = json.loads((tmp_path / "cfg.json").read_text())
    as_from_elsewhere(tmp_path, config | {"rescale_acts_by_decoder_norm": True})
    weights = safetensors.numpy.load_file(tmp_path / "sae_weights.safetensors")
    norms = np.random.default_rng(0).uniform(0.2, 3.0, examples.F).astype(np.float32)
    weights["W_dec"] = weights["W_dec"] * norms[:, None]
    safetensors.numpy.save_file(weights, tmp_path / "sae_weights.safetensors")
    x = examples.activations()
    pre = (x.astype(np.float64) - weights["b_dec"][None, :]) @ weights["W_enc"] + weights["b_enc"][None, :]
    pre = pre * norms[None, :]
    feats = np.maximum(pre, 0)
    np.put_along_axis(feats, np.argsort(-pre, axis=1, kind="stable")[:, examples.K :], 0, axis=1)
    back = export.load(tmp_path)
    assert np.abs(back.encode(x) - feats).max() < 1e-5 * feats.max()
    x_hat = (feats / norms[None, :]) @ weights["W_dec"] + weights["b_dec"][None, :]
    assert np.abs(back.decode(feats) - x_hat).max() < 1e-5 * np.abs(x_hat).max()


def test_weights_in_bfloat16_are_read(examples, tmp_path):
    export.save(tmp_path, examples.make("relu_l1"))
    path = tmp_path / "sae_weights.safetensors"
    halves = {name: a.astype(ml_dtypes.bfloat16) for name, a in safetensors.numpy.load_file(path).items()}
    safetensors.numpy.save_file(halves, path)
    (tmp_path / "checksums.json").unlink()
    assert np.array_equal(export.load(tmp_path).w_dec, halves["W_dec"].astype(np.float32))


def test_weights_that_are_cut_short_are_named(examples, tmp_path):
    export.save(tmp_path, examples.make("relu_l1"))
    path = tmp_path / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    (tmp_path / "checksums.json").unlink()
    with pytest.raises(ValueError, match=r"sae_weights.safetensors is not a safetensors file"):
        export.load(tmp_path)
