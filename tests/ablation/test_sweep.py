"""The grid of a sweep, and the plots of its table."""

import re
import xml.etree.ElementTree

import pytest

from configs import demo
from jsae.ablation import sweep
from jsae.report import figures, pareto


def config_of(**lists):
    config = demo.get_config()
    for name, values in lists.items():
        config.sweep[name] = values
    return config


def test_the_grid_is_every_combination_in_order():
    points = sweep.grid(config_of(k=(8, 16), seed=(0, 1), learning_rate=(1e-3,)))
    assert [(p.sae.k, p.seed) for p in points] == [(8, 0), (8, 1), (16, 0), (16, 1)]
    assert {p.sae.variant for p in points} == {"topk"} and {p.sae.n_features for p in points} == {512}


def test_settings_that_a_variant_lacks_make_no_double():
    points = sweep.grid(
        config_of(variant=("topk", "relu_l1", "jumprelu"), k=(8, 16), l1=(0.1, 0.2, 0.3), l0=(1.0,))
    )
    found = [(p.sae.variant, p.sae.k, p.sae.l1, p.sae.l0) for p in points]
    assert found == [
        ("topk", 8, 0.0, 0.0),
        ("topk", 16, 0.0, 0.0),
        ("relu_l1", 16, 0.1, 0.0),
        ("relu_l1", 16, 0.2, 0.0),
        ("relu_l1", 16, 0.3, 0.0),
        ("jumprelu", 16, 0.0, 1.0),
    ]


def test_the_config_itself_is_left_alone():
    config = config_of(k=(4,))
    sweep.grid(config)
    assert config.sae.k == demo.get_config().sae.k


def test_an_empty_grid_and_an_unknown_variant_are_refused():
    with pytest.raises(ValueError, match=r"config\.sweep is empty: give a list for one of variant,"):
        sweep.grid(config_of())
    with pytest.raises(ValueError, match="unknown SAE variant 'topkk'; the variants are relu_l1"):
        sweep.grid(config_of(variant=("topkk",)))


def row(variant, k, seed, l0, fvu, recovered=0.9):
    settings = {"n_features": 512, "k": k, "l1": None, "l0_coefficient": None, "learning_rate": 1e-3}
    numbers = {"l0": l0, "fvu": fvu, "pca_fvu": 0.3, "accuracy_recovered": recovered}
    return {"variant": variant, "seed": seed} | settings | numbers


def test_a_point_of_a_plot_is_the_mean_over_seeds():
    rows = [row("topk", 16, 0, 16.0, 0.2), row("topk", 16, 1, 16.0, 0.4), row("topk", 8, 0, 8.0, 0.5)]
    assert pareto._line(rows, "topk", "fvu") == ([8.0, 16.0], [0.5, pytest.approx(0.3)])


def test_plots_are_drawings_with_a_line_a_variant_and_pca():
    rows = [row(v, k, 0, float(k), 1 / k) for v in ("topk", "gated", "a<b") for k in (4, 8)]
    drawn = pareto.plots(rows)
    assert set(drawn) == {"fvu", "accuracy_recovered"}
    text = figures.standalone(drawn["fvu"])
    root = xml.etree.ElementTree.fromstring(text)  # well-formed, names escaped
    assert root.tag.endswith("svg")
    assert len(re.findall("<polyline", text)) == 4 and "PCA" in text and "a&lt;b" in text
    assert len(re.findall("<circle", text)) == 2 * 3 + 2


def test_numbers_that_are_not_known_are_not_drawn():
    rows = [row("topk", k, 0, float(k), 1 / k, recovered=None) for k in (4, 8)]
    assert set(pareto.plots(rows)) == {"fvu"}
