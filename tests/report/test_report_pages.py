"""The HTML report: escaping, self-containedness, numbers as in the tables, same bytes, missing stages."""

import base64
import html
import html.parser
import re

import fake_ablation
import fake_analysis
import fake_study
import fake_world
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from jsae.report import figures, pictures, survey
from jsae.report.formatting import interval, number, percent, shown, wilson
from jsae.report.reading import choose


class Parsed(html.parser.HTMLParser):
    """Tags with attributes, the text, and a check that tags are closed in order."""

    VOID = frozenset(("meta", "link", "img", "input", "br"))

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self._open = [], "", []
        self.feed(path.read_text("utf-8"))
        assert not self._open, self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def all_pages(report):
    return sorted(report.glob("*.html")) + sorted((report / "features").glob("*.html"))


def test_class_names_with_markup_are_text_everywhere(report):
    seen = 0
    for path in all_pages(report):
        page = Parsed(path)
        assert {attrs["src"].split("/")[-1] for attrs in page.all("script")} <= {"report.js", "features.js"}
        assert "<script>alert" not in path.read_text("utf-8")
        assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
        seen += fake_world.MARKUP in page.text
    assert seen > 5


def test_the_folder_is_self_contained_and_every_link_leads_somewhere(report):
    for path in all_pages(report):
        page = Parsed(path)
        ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
        for tag, attrs in page.tags:
            for link in (attrs[name] for name in ("src", "href", "xlink:href") if name in attrs):
                if link.startswith("https://arxiv.org/") and tag == "a":
                    continue
                if link == "data:,":  # keeps browsers from asking for an icon
                    continue
                assert not re.match(r"[a-z]+:|/", link), f"{path.name}: {link}"
                target, _, fragment = link.partition("#")
                assert (path.parent / target).exists() if target else fragment in ids, f"{path.name}: {link}"
    css = (report / "style.css").read_text() + (report / "report.js").read_text()
    assert not re.search(r"url\(|@import|https?:", css)
    assert not re.search(r"fetch\(|XMLHttpRequest|localStorage|sessionStorage|innerHTML|import\(", css)
    assert len((report / "report.js").read_bytes()) <= 40_000
    for path in (report / "figures").glob("*.svg"):
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|href=\"(?!features/)|url\(", text), path.name


def test_pages_are_accessible_in_the_plain_ways(report):
    for path in all_pages(report):
        page = Parsed(path)
        assert page.all("html")[0]["lang"] == "en"
        assert len(page.all("h1")) == 1
        assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
        assert all(img.get("alt") for img in page.all("img"))
        assert all("aria-label" in svg or "aria-hidden" in svg or "x" in svg for svg in page.all("svg"))
        assert all("scope" in th for th in page.all("th"))
    css = (report / "style.css").read_text()
    assert "prefers-color-scheme: dark" in css
    assert "@media print" in css


def test_numbers_of_a_feature_page_are_those_of_the_tables(report):
    feature_space = fake_ablation.feature_space_table().to_pylist()
    input_space = fake_ablation.input_space_table().to_pylist()
    row = fake_analysis.features_table().to_pylist()[1]
    text = Parsed(report / "features" / "feature-1.html").text
    names = ("purity16", "selectivity", "selectivity_null", "selectivity_excess", "selectivity_z", "density")
    names += ("label_entropy", "label_entropy_null", "auroc", "auroc_p", "auroc_q", "max", "mean_active")
    values = [row[name] for name in names]
    for effect in (r for r in feature_space if r["feature"] == 1):
        stems = ("mean_delta", "effect_minus_direction", "effect_minus_feature")
        values += [effect[stem] for stem in stems]
        values += [effect[f"control_{c}_mean_delta"] for c in ("direction", "feature")]
        values += [effect[f"{k}_{c}"] for k in ("p", "q") for c in ("direction", "feature")]
        for stem in ("ci95", *stems[1:]):
            assert str(interval(effect[f"{stem}_low"], effect[f"{stem}_high"]))[17:-7] in text
    for effect in (r for r in input_space if r["feature"] == 1):
        values += [effect[k] for k in ("mean_delta", "control_mean_delta", "effect_minus_control", "p", "q")]
    margin = (1, "top_class", "margin")
    head = next(r for r in input_space if (r["feature"], r["target"], r["measure"]) == margin)
    values += [head["feature_fall"], head["control_feature_fall"], head["energy_matched_share"]]
    missing = [value for value in values if number(value) not in text]
    assert len(values) > 250
    assert not missing


def test_the_index_shows_headline_numbers_with_their_intervals(report):
    text = " ".join(Parsed(report / "index.html").text.split())
    assert "−1.23 [−1.34, −1.21]" in text
    assert "ends up 1.23 lower on average than when a direction of equal norm" in text
    assert "0.830 [0.610, 0.930]" in text
    assert "By family: accuracy 0.912, mean per class 0.903." in text
    selective = fake_analysis.features_table()["class_selective"].to_pylist()
    assert f"Mean over {sum(selective[:10])} such features." in text  # the ten that are ablated
    assert "The interval excludes zero." in text
    assert "drawn by a program, not photographed" in text


def test_a_feature_that_fires_too_rarely_shows_dashes_with_the_reason(report):
    page = Parsed(report / "features" / "feature-3.html")
    reasons = {span["title"] for span in page.all("span") if span.get("class") == "null"}
    assert any("fire on at least 20 test images; this one fires on 7" in reason for reason in reasons)
    assert "fewer than the 20 that an effect is stated for" in page.text
    assert "nan" not in page.text.lower().split()


def test_ablated_features_come_first_and_dead_ones_have_no_page(report):
    made = {int(p.stem.split("-")[1]) for p in (report / "features").glob("*.html")}
    assert {0, 1, 2, 3, 5, 6, 7, 8, 9} <= made
    assert len(made) == 12
    assert not any(f % 9 == 4 for f in made)


def test_the_same_study_gives_the_same_bytes(made_up_study, report, tmp_path):
    fake_study.make_report(made_up_study, tmp_path)
    files = sorted(p.relative_to(report) for p in report.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert all((report / f).read_bytes() == (tmp_path / f).read_bytes() for f in files)


@pytest.mark.parametrize("without", ["classifier", "sae", "analysis", "ablation"])
def test_a_missing_stage_is_said_and_not_fatal(tmp_path, without):
    workdir = fake_study.make_workdir(tmp_path / "study", without={without})
    n_pages = fake_study.make_report(workdir, tmp_path / "out")
    assert n_pages == (0 if without == "analysis" else 12)
    text = Parsed(tmp_path / "out" / "index.html").text
    said = {
        "classifier": "No curve: the stage was skipped",
        "sae": "No curve: the stage was skipped",
        "analysis": "The analysis stage has not run",
        "ablation": "The ablation stage was skipped",
    }
    assert said[without] in text
    if without == "ablation":
        assert "This feature was not ablated" in Parsed(next((tmp_path / "out" / "features").iterdir())).text


def test_a_study_of_bare_activations_has_no_pictures_and_no_classifier(tmp_path):
    workdir = fake_study.make_workdir(tmp_path / "study", without={"classifier", "ablation"})
    bare = {"data_kind": "arrays", "arch": None, "image_px": None, "class_names": (), "class_sizes": None}
    fake_study.make_report(workdir, tmp_path / "out", **bare)
    assert not (tmp_path / "out" / "images").exists()
    pages = [Parsed(path) for path in all_pages(tmp_path / "out")]
    assert not any(page.all("img") for page in pages)
    assert "No images belong to these activations" in pages[-1].text


def test_numbers_have_three_significant_digits_and_a_true_minus():
    cases = {0.0: "0", 1.0: "1.00", -1.5: "−1.50", 0.01234: "0.0123", 0.9996: "1.00", 99.96: "100"}
    cases |= {1234.5: "1,230", 1.5e-6: "1.50×10⁻⁶", 2.5e9: "2.50×10⁹", 7: "7", -6144: "−6,144"}
    for value, text in cases.items():
        assert number(value) == text
    assert percent(0.2861) == "28.6%"
    assert str(interval(-1.5, 0.25)) == '<span class="ci">[−1.50, 0.250]</span>'


@pytest.mark.parametrize("unknown", [None, float("nan"), float("inf")])
def test_an_unknown_number_is_a_dash_with_a_reason(unknown):
    text = str(shown(unknown, 'because of "this" & that'))
    assert "–" in text
    assert html.escape('because of "this" & that', quote=True).replace("&quot;", "&#34;") in text
    assert 'title="the reason"' in str(interval(unknown, 1.0, "the reason"))


def test_wilson_interval_holds_the_share_and_stays_within_zero_and_one():
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)  # tabulated
    assert 0.99999 < wilson(1.0, 10)[1] <= 1.0
    assert 0.0 <= wilson(0.0, 10)[0] < 1e-5
    assert wilson(None, 10) is wilson(0.5, None) is None


def images_of(rows):
    return [row["image"] for row in rows]


def test_pictures_of_a_page_are_the_top_patches_with_the_cell_outlined_and_their_map(report):
    page = Parsed(report / "features" / "feature-2.html")
    rows = [row for row in fake_analysis.patches_table().to_pylist() if row["feature"] == 2]
    outlines = [tag["style"] for tag in page.all("i")]
    assert outlines == [f"--x:{row['x']};--y:{row['y']}" for row in rows]
    assert [img["src"] for img in page.all("img")] == [f"../images/{row['image']}.jpg" for row in rows]
    maps = [base64.b64decode(tag["data-map"]) for tag in page.all("canvas")]
    expected = [fake_world.SAE.encode(fake_world.read_acts(i, i + 1))[0, ..., 2] for i in images_of(rows)]
    assert maps == [survey.to_bytes(values, fake_world.LARGEST) for values in expected]
    (gallery,) = (tag for tag in page.all("div") if tag.get("class") == "gallery")
    assert (gallery["data-grid"], gallery["style"]) == ("3,3", "--h:3;--w:3")


def test_thumbnails_are_bounded_jpegs(tmp_path):
    (tmp_path / "a.jpg").write_bytes(pictures.jpeg(np.zeros((500, 400, 3), np.uint8)))
    with Image.open(tmp_path / "a.jpg") as picture:
        assert (picture.format, picture.size) == ("JPEG", (128, 160))


def test_choice_without_ablation_is_by_class_selectivity_then_purity():
    table = pa.table(
        {
            "feature": [0, 1, 2, 3],
            "alive": [True, True, True, False],
            "eligible": [True, True, True, False],
            "class_selective": [False, True, False, False],
            "purity16": [0.2, 0.1, 0.9, None],
            "auroc": [0.6, 0.9, 0.7, None],
        }
    ).to_pydict()
    assert choose(table, [], 10) == (1, 2, 0)
    assert choose(table, [3, 0], 2) == (0, 1)


def test_figures_survive_constant_single_and_unknown_values():
    assert str(figures.line_panel("loss", [("train", [0, 1], [None, None])])) == ""
    for ys in ([1.0], [1.0, 1.0], [0.0, 0.0], [-1.0, 1e9], [1e-6, 1e6]):
        svg = str(figures.line_panel("loss", [("train", list(range(len(ys))), ys)]))
        assert "nan" not in svg
        assert "<polyline" in svg
    many = [(f"a long name {i}", [0, 1], [1.0, 2.0]) for i in range(4)]
    svg = str(figures.line_panel("many", many, y_label="y"))
    above = int(re.search(r'viewBox="0 -(\d+) ', svg).group(1))  # room for a legend of four lines
    rows = [float(y) for y in re.findall(r'<line class="line s\d d\d"[^>]* y1="([-\d.]+)"', svg)]
    assert len(rows) == 4 and -above <= min(rows) and max(rows) <= 8  # above the axis' name
    assert "nan" not in str(figures.scatter("s", [(0.0, 0.0, "f", None)], "x", "y"))
    assert "nan" not in str(figures.density_histogram("d", [1.0, 1.0], [True, False]))
