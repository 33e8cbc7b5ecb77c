"""Odd numbers through extraction, SAE and analysis: the right result, or an error that says what is wrong."""

import numpy as np
import pytest

from configs import arrays as arrays_config
from jsae.activations import run as extraction
from jsae.analysis import run as analysis
from jsae.runtime import stages, workdirs
from jsae.sae import run as sae

N, GRID, C = 24, 2, 8


def activations(change=lambda x: None):
    x = np.random.default_rng(0).normal(size=(N, GRID, GRID, C)).astype(np.float32)
    changed = change(x)
    return x if changed is None else changed


def put(value, image=5):
    def change(x):
        x[image, 1, 0, 3] = value

    return change


def rare(x):
    x[:] = 0.01 * x
    x[0, 0, 0] = 30.0  # of train: next to it, all of test looks the same, and no fvu is below 1


KILLING = {"relu_l1": {"l1": 1e3}, "learning_rate": 1.0, "variant": "relu_l1"}
CASES = [  # input, activations, settings of sae, what happens: numbers within bounds, or words of the error
    (
        "constant activations",
        activations(lambda x: np.ones_like(x)),
        {},
        "all activations in .* are the same",
    ),
    ("one image is constant", activations(lambda x: x[4].fill(1)), {}, {"fvu": (0.0, 1.0)}),
    ("a mean of 1e5 times the deviation", activations(lambda x: x + 1e5), {}, {"fvu": (0.0, 1.0)}),
    ("activations of 1e30", activations(lambda x: x * 1e15), {}, {"fvu": (0.0, 1.0)}),
    ("NaN in one image", activations(put(np.nan)), {}, r"activations\[5\] .* is nan at y=1, x=0, channel 3"),
    ("infinity in one image", activations(put(-np.inf)), {}, r"activations\[5\] .* is -inf at y=1"),
    ("a float64 beyond float32", activations(lambda x: put(1e300)(y := x.astype(float)) or y), {}, "1e.300"),
    ("one vector far from all others", activations(rare), {}, {"l0": (0.0, 16.0)}),
    (
        "a penalty that kills features",
        activations(),
        KILLING,
        {"dead_fraction": (0.1, 1.0)},
    ),
    (
        "a penalty that kills most features",
        activations(),
        KILLING | {"relu_l1": {"l1": 1e6}, "n_epochs": 20.0},
        {"dead_fraction": (0.5, 1.0), "l0": (0.0, 2.0), "n_features_alive": (0, 8)},
    ),
    ("k = F", activations(), {"topk": {"k": 16}}, {"l0": (0.0, 16.0)}),
    ("one feature", activations(), {"n_features": 1, "topk": {"k": 1}}, {"fvu": (0.0, 1.5)}),
]


@pytest.mark.parametrize("given, acts, settings, happens", CASES, ids=[case[0] for case in CASES])
def test_odd_numbers(given, acts, settings, happens, tmp_path, note_case):
    np.savez(tmp_path / "x.npz", activations=acts, labels=np.arange(N) % 2, split=SPLIT)
    config = arrays_config.get_config()
    config.data.dir = str(tmp_path / "x.npz")
    config.sae.update(n_features=16, batch_size=64, n_epochs=4.0, eval_every_steps=0, save_every_steps=0)
    config.sae.topk.k = 2
    config.sae.update(settings)
    config.analysis.update(n_permutations=2, batch_size=8)
    config.runtime.data_axis = 8

    def study():
        workdirs.write_config(config, tmp_path / "w")
        for stage in (extraction, sae, analysis):
            stage.run(config, tmp_path / "w")
        return {**results("sae"), **results("analysis")}

    def results(name):
        return stages.results(config, tmp_path / "w", name)

    if isinstance(happens, str):
        with pytest.raises((ValueError, FloatingPointError), match=happens) as caught:
            study()
        note_case("4. numbers", given, "error: " + str(caught.value).replace(str(tmp_path), "TMP"))
        return
    found = study()
    for name, (low, high) in happens.items():
        assert found[name] is not None and low <= found[name] <= high, (name, found[name])
    shown = ", ".join(f"{name} {found[name]:.3f}" for name in ("fvu", "l0", "dead_fraction"))
    note_case("4. numbers", given, f"{shown}, {found['n_features_alive']} features alive")


SPLIT = np.array(["train"] * 16 + ["val"] * 4 + ["test"] * 4)
