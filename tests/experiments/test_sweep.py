"""The grid of a sweep, and the plots of its table."""

import re
import xml.etree.ElementTree

import pytest

from configs import demo
from jsae.experiments import sweep
from jsae.report.figures import axes, pareto
from jsae.runtime import artifacts


def config_of(**lists):
    config = demo.get_config()
    for name, values in lists.items():
        config.sweep[name] = values
    return config


def test_the_grid_is_every_combination_in_order():
    points = sweep.grid(config_of(k=(8, 16), seed=(0, 1), learning_rate=(1e-3,)))
    assert [(p.sae.topk.k, p.seed) for p in points] == [(8, 0), (8, 1), (16, 0), (16, 1)]
    assert {p.sae.variant for p in points} == {"topk"} and {p.sae.n_features for p in points} == {512}


def test_settings_that_a_variant_lacks_make_no_double():
    points = sweep.grid(
        config_of(variant=("topk", "relu_l1", "jumprelu"), k=(8, 16), l1=(0.1, 0.2, 0.3), l0=(1.0,))
    )
    found = [(p.sae.variant, p.sae.topk.k, p.sae.relu_l1.l1, p.sae.jumprelu.l0) for p in points]
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
    assert config.sae.topk.k == demo.get_config().sae.topk.k


def test_an_empty_grid_and_an_unknown_variant_are_refused():
    with pytest.raises(ValueError, match=r"config\.sweep is empty: give a list for one of variant,"):
        sweep.grid(config_of())
    with pytest.raises(ValueError, match="unknown SAE variant 'topkk'; the variants are relu_l1"):
        sweep.grid(config_of(variant=("topkk",)))


@pytest.mark.parametrize(
    "lists, words",
    [
        ({"k": (8, 513)}, "of 2 SAEs of the sweep none is trained: topk, .*k=513.*1..n_features=512"),
        ({"k": (8, 0)}, "none is trained.*needs an integer k in 1"),
        ({"k": (8, 16.0)}, r"config\.sweep\.k=\(8, 16\.0\): 16\.0 is no int, as config\.sae\.topk\.k is"),
        ({"k": ("8",)}, "'8' is no int"),
        ({"variant": ("topk", 3)}, "3 is no str"),
        ({"l1": (0.1,)}, r"config\.sweep\.l1 is varied, but topk has no l1; relu_l1, gated have"),
        ({"variant": ("relu_l1", "jumprelu"), "k": (8,)}, "relu_l1, jumprelu has no k; topk, batch_topk"),
        ({"learning_rate": (1e-3, -1.0)}, "none is trained.*learning_rate=-1.0"),
        ({"learning_rate": (1e-3, float("nan"))}, "none is trained.*learning_rate=nan"),
        ({"n_features": (512, 0)}, "none is trained.*n_features=0"),
        ({"seed": (0, -1)}, r"none is trained.*config\.seed=-1 must be in 0"),
    ],
)
def test_a_bad_setting_late_in_a_list_is_found_before_the_first_trains(lists, words):
    with pytest.raises(ValueError, match=words):
        sweep.grid(config_of(**lists))


def test_whole_numbers_are_floats_where_a_float_is_meant():
    points = sweep.grid(config_of(variant=("relu_l1",), l1=(1, 2.5)))
    assert [p.sae.relu_l1.l1 for p in points] == [1.0, 2.5]


def table_row(digest, **values):
    return dict.fromkeys(sweep.TABLE.names) | {"digest": digest, "variant": "topk"} | values


def test_rows_of_another_extraction_are_left_out_and_empty_columns_not_shown(tmp_path):
    assert sweep.load(tmp_path) == []
    rows = [table_row("a", k=8, fvu=0.12345), table_row("b", k=None, fvu=None)]
    path = tmp_path / sweep.FOLDER / sweep.TABLE.file
    artifacts.write_table(path, sweep.TABLE.of_rows(rows), {"upstream": "one"})
    assert sweep.load(tmp_path) == sweep.load(tmp_path, "one") == rows
    assert sweep.load(tmp_path, "another") == []
    shown = "| variant | k | fvu |\n|---|---|---|\n| topk | 8 | 0.1235 |\n| topk | – | – |"
    assert sweep.markdown(rows) == shown


def test_saes_that_differ_in_a_setting_without_a_column_are_no_seeds_of_one_point():
    rows = [row("topk", 16, 0, 16.0, 0.2), row("topk", 16, 0, 16.0, 0.4) | {"others": '{"n_epochs": 4}'}]
    assert pareto._line(rows, "topk", "fvu")[1:3] == ([16.0, 16.0], [0.2, 0.4])


def row(variant, k, seed, l0, fvu, recovered=0.9):
    settings = {
        "n_features": 512,
        "k": k,
        "l1": None,
        "l0_coefficient": None,
        "learning_rate": 1e-3,
        "others": "{}",
    }
    numbers = {"l0": l0, "fvu": fvu, "pca_fvu": 0.3, "accuracy_recovered": recovered}
    return {"variant": variant, "seed": seed} | settings | numbers


def test_a_point_of_a_plot_is_the_mean_over_seeds():
    rows = [row("topk", 16, 0, 16.0, 0.2), row("topk", 16, 1, 16.0, 0.4), row("topk", 8, 0, 8.0, 0.5)]
    assert pareto._line(rows, "topk", "fvu")[1:3] == ([8.0, 16.0], [0.5, pytest.approx(0.3)])


def test_plots_are_drawings_with_a_line_a_variant_and_pca():
    rows = [row(v, k, 0, float(k), 1 / k) for v in ("topk", "gated", "a<b") for k in (4, 8)]
    drawn = pareto.plots(rows)
    assert set(drawn) == {"fvu", "accuracy_recovered"}
    text = axes.standalone(drawn["fvu"]).decode()
    root = xml.etree.ElementTree.fromstring(text)  # well-formed, names escaped
    assert root.tag.endswith("svg")
    assert len(re.findall("<polyline", text)) == 4 and "PCA" in text and "a&lt;b" in text
    assert len(re.findall("<circle", text)) == 2 * 3 + 2


def test_numbers_that_are_not_known_are_not_drawn():
    rows = [row("topk", k, 0, float(k), 1 / k, recovered=None) for k in (4, 8)]
    assert set(pareto.plots(rows)) == {"fvu"}
