"""The exported files: SAELens' own arithmetic on them equals encode and decode, and they come back."""

import json

import numpy as np
import pytest
import safetensors.numpy

from jsae.sae import export


def saelens(folder, x, k):
    """What SAELens computes from cfg.json and the weights (apply_b_dec_to_input), in float64."""
    weights = safetensors.numpy.load_file(folder / "sae_weights.safetensors")
    w_enc, b_enc, w_dec, b_dec = (
        weights[name].astype(np.float64) for name in ("W_enc", "b_enc", "W_dec", "b_dec")
    )
    pre = (x.astype(np.float64) - b_dec[None, :]) @ w_enc + b_enc[None, :]
    feats = np.maximum(pre, 0)
    if k is not None:
        dropped = np.argsort(-pre, axis=1, kind="stable")[:, k:]
        np.put_along_axis(feats, dropped, 0, axis=1)
    return feats, feats @ w_dec + b_dec[None, :]


@pytest.mark.parametrize("variant", ["relu_l1", "topk"])
def test_the_files_hold_the_same_sae_in_raw_units(variant, examples, tmp_path):
    model, x = examples.make(variant), examples.activations()
    export.save(tmp_path, model, metadata={"site": "stage4"})
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config["architecture"] == {"relu_l1": "standard", "topk": "topk"}[variant]
    assert (config["d_in"], config["d_sae"]) == (examples.C, examples.F)
    assert config["apply_b_dec_to_input"] is True
    assert config["normalize_activations"] == "none"
    assert config.get("k") == model.k
    assert config.get("rescale_acts_by_decoder_norm", False) is False
    feats, x_hat = saelens(tmp_path, x, model.k)
    # 1e-5 of the largest value: float32 keeps about 5 digits of x - mean with |mean| near 500
    assert np.abs(model.encode(x) - feats).max() < 1e-5 * feats.max()
    assert np.abs(model.decode(feats) - x_hat).max() < 1e-5 * np.abs(x_hat).max()

    back = export.load(tmp_path)
    assert (back.variant, back.k, back.n_features) == (variant, model.k, examples.F)
    assert np.abs(back.encode(x) - feats).max() < 1e-5 * feats.max()
    assert np.abs(back.decode(back.encode(x)) - x_hat).max() < 1e-5 * np.abs(x_hat).max()


def test_what_cannot_be_read_is_named(examples, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cfg\.json"):
        export.load(tmp_path)
    export.save(tmp_path, examples.make())
    good = json.loads((tmp_path / "cfg.json").read_text())
    for change, message in (
        ({"architecture": "gated"}, "'gated' is unknown; the architectures are standard, topk"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'"),
        ({"rescale_acts_by_decoder_norm": True}, "only False can be read"),
        ({"d_in": examples.C + 1}, "W_enc should have shape"),
        ({"k": 0}, "k in 1"),
    ):
        (tmp_path / "cfg.json").write_text(json.dumps(good | change))
        with pytest.raises(ValueError, match=message):
            export.load(tmp_path)


def test_a_decoder_bias_that_is_not_subtracted_from_the_input_is_folded_in(examples, tmp_path):
    export.save(tmp_path, examples.make("relu_l1"))
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"apply_b_dec_to_input": False}))
    weights = safetensors.numpy.load_file(tmp_path / "sae_weights.safetensors")
    x = examples.activations()
    expected = np.maximum(x.astype(np.float64) @ weights["W_enc"] + weights["b_enc"][None, :], 0)
    assert np.abs(export.load(tmp_path).encode(x) - expected).max() < 1e-5 * expected.max()
