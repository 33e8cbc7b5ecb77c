"""The numbers behind the pages: data of the table, files, generic tables, matches in another SAE, cards."""

import csv
import dataclasses
import json
import re
import types

import numpy as np
import pyarrow as pa
import pytest

from jsae import tables
from jsae.analysis import cells
from jsae.report import card, twins
from jsae.report.figures import classifier as classifier_figures
from jsae.report.formatting import number
from jsae.report.pages import features, sections
from jsae.report.pages.feature import class_bars
from jsae.report.pages.features import ranks
from tests.report import fake_study, fake_tables, fake_world


def read_data(report):
    text = (report / "features.js").read_text()
    assert text.startswith("window.JSAE_FEATURES=") and text.endswith(";\n")
    return json.loads(text[len("window.JSAE_FEATURES=") : -2])


def test_the_data_of_the_table_are_the_numbers_of_the_tables(report):
    data = read_data(report)
    rows = {row["feature"]: row for row in fake_tables.features_table().to_pylist()}
    removed = {row["feature"]: row for row in fake_tables.all_features_table().to_pylist()}
    wanted = {"scope": "map", "target": "own_class", "measure": "margin"}
    ablated = {
        row["feature"]: row
        for row in fake_tables.feature_space_table().to_pylist()
        if wanted.items() <= row.items()
    }
    expected = [(rows, name) for name in ("purity16", "selectivity_excess", "auroc", "density")]
    expected += [(removed, "own_class_margin"), (ablated, "effect_minus_direction")]
    assert sorted(data["feature"]) == sorted(rows) and 6 < len(data["columns"]) <= len(features.COLUMNS)
    for (table, name), column in zip(expected, data["columns"], strict=False):
        values = [table[f][name] if f in table else None for f in data["feature"]]
        assert column["text"] == ["" if v is None else number(v) for v in values]
        known = [(v, r) for v, r in zip(values, column["rank"], strict=True) if v is not None]
        assert [r for _, r in sorted(known)] == sorted(r for _, r in known)
    doc = tables.documentation(fake_tables.all_features_table())["own_class_margin"]
    assert data["columns"][4]["doc"] == doc != ""
    q = {f: row["q_direction"] for f, row in ablated.items() if row["q_direction"] is not None}
    differs = {f for f, flags in zip(data["feature"], data["flags"], strict=True) if "q" in flags}
    assert differs == {f for f in q if q[f] <= 0.05} and 0 < len(differs) < len(q)


def test_a_table_of_thousands_of_features_stays_small():
    n = 6144
    texts = {
        "text": [number(f / n) for f in range(n)],
        "rank": list(range(n)),
        "values": [f / n for f in range(n)],
    }
    page = {
        "feature": list(range(n)),
        "page": [True] * n,
        "name": [f"class {f % 100}" for f in range(n)],
        "classes": sorted({f"class {f % 100}" for f in range(n)}),
        "part": None,
        "flags": ["sae"] * n,
        "crops": [[[f % 3000, 3, 4]] * 3 for f in range(n)],
        "columns": [
            {"name": name, "doc": 50 * "a ", "rising": False} | texts for *_, name in features.COLUMNS[:11]
        ],
    }
    assert len(features.data_script(page, (7, 7))) < 2_000_000


def test_ranks_order_by_value_and_leave_the_unknown_out():
    assert ranks([0.5, None, -1.0, 0.5, float("nan"), 1e-300]) == [2, -1, 0, 2, -1, 1]


def test_every_table_is_a_csv_file_with_the_numbers_in_full(report):
    made = fake_tables.all_tables()
    written = {"sweep": made.pop("sweep")["table"]}
    written |= {name: table for tables in made.values() for name, table in tables.items()}
    for name, table in written.items():
        with (report / "tables" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(table)
        for row, expected in zip(rows, table.to_pylist(), strict=True):
            assert set(row) == {k for k, v in expected.items() if not isinstance(v, list)}
            for key, text in row.items():
                value = expected[key]
                if isinstance(value, float):
                    kind = np.float32 if table.schema.field(key).type == pa.float32() else float
                    assert kind(text) == kind(value)
                elif value is None:
                    assert text == ""
                elif isinstance(value, str):
                    assert text == value
    with (report / "tables" / "columns.csv").open(newline="", encoding="utf-8") as file:
        meanings = {(row["table"], row["column"]): row["meaning"] for row in csv.DictReader(file)}
    assert meanings["features", "class_mean"].startswith("for each class, mean over its test images")
    assert {name for name, _ in meanings} >= set(fake_tables.LAYOUTS)
    curve = (report / "tables" / "sae_curve.csv").read_text().splitlines()
    assert "train/fvu" in curve[0] and len(curve) == 101


def test_every_plot_of_the_overview_is_a_file_too(report):
    page = (report / "index.html").read_text()
    files = {path.stem for path in (report / "figures").glob("*.svg")}
    assert {
        "classifier-loss",
        "confusion",
        "calibration",
        "density",
        "cumulative-margin",
        "sweep-fvu",
    } <= files
    assert set(re.findall(r'href="figures/([^"]+)\.svg"', page)) == files
    for name in files:
        text = (report / "figures" / f"{name}.svg").read_text()
        assert text.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
        style, drawn = text.split("</style>")
        used = {one for names in re.findall(r'class="([^"]+)"', drawn) for one in names.split()}
        assert used - {"d0"} <= set(re.findall(r"\.([a-z]\w*)", style)), name  # or it is drawn black
        title = re.search("<title>(.*?)</title>", drawn).group(1)
        assert f'font-weight="bold">{title}</text>' in drawn


def test_a_table_of_any_columns_joins_numbers_with_their_intervals():
    table = pa.table(
        {
            "name": ["a", "b"],
            "score": [0.5, None],
            "score_low": [0.4, None],
            "score_high": [0.6, None],
            "mean_delta": [1.0, 2.0],
            "many": [[1.0], [2.0]],
        }
    )
    shown = sections.any_table(table)
    heads = [(column["name"], column["has_interval"]) for column in shown["columns"]]
    assert heads == [("name", False), ("score", True), ("mean_delta", False)]
    assert shown["rows"] == table.to_pylist() and shown["n_rows"] == 2
    hidden = sections.any_table(table, hidden=("score", "name"))
    assert [column["name"] for column in hidden["columns"]] == ["mean_delta"]
    assert sections.any_table(None) is None and sections.any_table(table.slice(0, 0)) is None
    assert len(sections.any_table(pa.table({"name": ["a"] * 100}))["rows"]) == 60


def test_a_square_of_the_confusion_matrix_says_its_numbers_and_fades_with_its_share():
    keys = ("label", "prediction", "n_images")
    cells = [dict(zip(keys, cell, strict=True)) for cell in ((0, 0, 3), (0, 1, 1), (1, 1, 4))]
    figure = str(classifier_figures.confusion("c", cells, ["<a>", "b"]))
    assert "&lt;a&gt; taken for b: 1 of 4" in figure
    assert re.findall(r'class="fill (s\d)" opacity="([\d.]+)"', figure) == [
        ("s0", "0.78"),
        ("s1", "0.34"),
        ("s0", "1.00"),
    ]


def test_calibration_leaves_empty_bins_out_and_draws_the_intervals(made_up_study):
    bins = fake_tables.classifier_tables()["calibration"].to_pylist()
    filled = [row for row in bins if row["n_images"]]
    assert 2 < len(filled) < len(bins)
    section, figures = sections.classifier_section(fake_study.read_made_up(made_up_study))
    assert [row["confidence"] for row in section["bins"]] == [row["confidence"] for row in filled]
    figure = str(figures["calibration"])
    assert figure.count("<circle") == figure.count('class="line s0"') == len(filled)
    row = filled[-1]
    text = f"{row['n_images']} images: confidence {number(100 * row['confidence'])}%, accuracy "
    assert text + f"{number(100 * row['accuracy'])}%" in figure


def test_the_match_in_another_sae_is_the_row_of_largest_cosine(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 16)).astype(np.float32)
    order = rng.permutation(300)
    this, other = types.SimpleNamespace(w_dec=rows), types.SimpleNamespace(w_dec=3 * rows[order])
    monkeypatch.setattr(twins.sae, "load", lambda path: other)
    found = twins.matches(str(tmp_path), this, range(300))
    assert {f: int(order[match]) for f, (match, _) in found.items()} == {f: f for f in range(300)}
    assert all(cosine == pytest.approx(1, abs=1e-5) for _, cosine in found.values())
    assert twins.matches("", this, range(300)) == {}
    with pytest.raises(ValueError, match=r"report\.twin=.* has 16 channels, this study's SAE 8"):
        twins.matches(str(tmp_path), types.SimpleNamespace(w_dec=rows[:, :8]), [0])


def make_card(all_features=None, with_effect=True, **changes):
    row = fake_tables.features_table().to_pylist()[1] | changes
    patches = [r for r in fake_tables.top_patches_table().to_pylist() if r["feature"] == 1][:3]
    images = fake_world.images()[[p["image"] for p in patches]]
    maps = np.zeros((3, *fake_world.GRID))
    maps[0, 1, 2] = patches[0]["value"]
    effect = fake_tables.feature_space_table().to_pylist()[24]
    numbers = {"effect": effect if with_effect else None, "all_features": all_features}
    return card.make_card(row, patches, images=images, maps=maps, grid=fake_world.GRID, **numbers), effect


def test_a_card_stands_alone_and_escapes_names():
    made, effect = make_card(top_class_name=fake_world.MARKUP)
    assert made._repr_html_() == made.html and "FeatureCard(1)" in repr(made)
    assert made.html.count("data:image/jpeg;base64,") == 3
    assert "<script" not in made.html and "&lt;script&gt;" in made.html
    assert not re.search(r'(src|href)="(?!data:)', made.html)
    assert number(effect["mean_delta"]) in made.html
    assert '<rect x="2" y="1" width="1" height="1" opacity="0.75"/>' in made.html


def test_a_card_says_what_its_columns_are_and_takes_the_effect_from_the_table_of_all():
    html = make_card()[0].html
    for head, what in [("purity16", "share of the commonest class"), ("removed − control", "equal norm")]:
        assert re.search(rf"<dt><strong>{head}.*?</strong></dt><dd[^>]*>[^<]*{what}", html), head
    assert "not among the features" not in html
    name = "own_class_margin"
    row = {name: -0.3217, f"{name}_low": -0.4, f"{name}_high": -0.2}
    html = make_card(row, with_effect=False)[0].html
    assert number(-0.3217) in html and "not among the features that were ablated beside a control" in html
    html = make_card(dict.fromkeys(row), with_effect=False)[0].html
    assert "it fires on fewer than 20 test images of that class" in html
    assert make_card(with_effect=False)[0].html.count("no stage of this study has removed it") == 4


def test_the_class_bars_stand_beside_what_shuffled_labels_give(made_up_study):
    """The range of the null against labels that are shuffled in fact."""
    study = fake_study.read_made_up(made_up_study, n_pages=3)
    study = dataclasses.replace(study, survey=fake_study.surveyed(study))
    pooled = fake_world.SAE.encode(fake_world.read_acts(0, fake_world.N_IMAGES)).mean((1, 2))[:, 0]
    rng = np.random.default_rng(0)
    shuffled = [pooled[rng.permutation(len(pooled))[:5]].mean() for _ in range(4000)]
    bars = class_bars(study, 0)
    low, high = bars["rows"][0]["band"]
    half = (np.quantile(shuffled, 0.975) - np.quantile(shuffled, 0.025)) / 2
    assert (high - bars["null"]) == pytest.approx(half, rel=0.1)  # five images: not quite normal
    assert bars["null"] - low <= high - bars["null"] + 1e-12


def test_a_feature_gets_the_part_that_it_finds_best_on_train(report):
    data = read_data(report)
    rows = fake_tables.localisation_table().to_pylist()
    for i, feature in enumerate(data["feature"]):
        mine = [r for r in rows if r["feature"] == feature and r["part"] != cells.FOREGROUND]
        best = max(mine, key=lambda r: r["auroc_train"])
        assert data["part"][i] == best["part"]
        assert number(best["auroc"]) in [column["text"][i] for column in data["columns"]]
    page = (report / "features" / "feature-1.html").read_text()
    best = max((r for r in rows[3:6] if r["part"] != cells.FOREGROUND), key=lambda r: r["auroc_train"])
    assert f">{best['part']}<" in page and f">train {number(best['auroc_train'])}<" in page
    assert "pixel map inside the cell" in page and f">{number(0.15)}<" in page
    overview = (report / "index.html").read_text()
    assert "lies inside its cell" in overview and "30.0%" in overview  # the mean of 0.1, 0.15, ... 0.5
