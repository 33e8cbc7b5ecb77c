"""The HTML report: escaping, self-containedness, numbers as in the tables, same bytes, missing stages."""

import base64
import html
import re

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from jsae.report import pictures, survey
from jsae.report.figures import histograms, lines
from jsae.report.formatting import interval, number, percent, shown
from jsae.report.pages.sections import with_wilson
from jsae.report.results import choose
from tests.report import fake_study, fake_tables, fake_world
from tests.report.parsed_page import Parsed


def all_pages(report):
    return sorted(report.glob("*.html")) + sorted((report / "features").glob("*.html"))


def test_class_names_with_markup_are_text_on_every_page(report):
    n_pages = 0
    for path in all_pages(report):
        page = Parsed(path)
        assert {attrs["src"].split("/")[-1] for attrs in page.all("script")} <= {"report.js", "features.js"}
        assert "<script>alert" not in path.read_text("utf-8")
        assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
        n_pages += fake_world.MARKUP in page.text
    assert n_pages > 5


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
    script = (report / "report.js").read_text()
    assert not re.search(r"localStorage|sessionStorage|indexedDB|innerHTML", script)
    assert len(script.encode()) <= 40_000


def asked_of_others(text: str) -> list[str]:
    """What in a file could make a browser ask another host; a link to arXiv asks when it is clicked."""
    text = re.sub(r'<a [^>]*href="https://arxiv\.org/[^"]*"', "", text)
    text = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    address = r"""(?:https?|wss?|ftp)://|(?:src|href|srcset|action|poster)\s*=\s*["']?//|url\(|@import"""
    call = r"fetch\(|XMLHttpRequest|sendBeacon|WebSocket|EventSource|import\("
    return re.findall(f"{address}|{call}", text)


def test_no_file_asks_another_host(report):
    paths = [path for path in report.rglob("*") if path.suffix in (".html", ".css", ".js", ".svg")]
    assert len(paths) > 30
    assert {path.name: found for path in paths if (found := asked_of_others(path.read_text()))} == {}


@pytest.mark.parametrize(
    "planted",
    [
        '<link rel="stylesheet" href="https://fonts.example/a.css">',
        "<script src='//cdn.example/a.js'></script>",
        '<img srcset="http://a.example/b.png 2x" alt="">',
        '<link href="https://arxiv.org/a.css">',  # not a link that waits for a click
        "body { background: url(a.png) }",
        '@import "b.css";',
        'fetch("features.json")',
        'import("./a.js")',
        'new WebSocket("wss://a.example")',
    ],
)
def test_what_would_ask_another_host_is_noticed(report, planted):
    assert asked_of_others((report / "index.html").read_text() + planted)


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


def test_the_index_shows_headline_numbers_with_their_intervals(report):
    text = " ".join(Parsed(report / "index.html").text.split())
    assert "Removing a class-selective feature, on images of its class −0.711 Mean change" in text
    assert "over 17 class-selective features" in text and "median −0.377" in text
    assert "effect − control is −1.23 [−1.34, −1.21]" in text and "−1.13 [−1.24, −1.11]" in text
    assert "0.830 [0.610, 0.930]" in text
    assert "By family: accuracy 0.912, mean per class 0.903." in text
    assert "as the stage ablation noted them: jax 0.10.2; git revision 0a1b2c." in text
    assert "Blurring where a feature peaks: its fall, median 0.0371" in text
    assert "3.54% lose half the feature or more" in text
    for numbers in ("−0.823 [−0.943, −0.783]", "−1.23 [−1.35, −1.19]"):  # of the mask; the peak has none
        assert numbers in text
    assert "drawn by a program, not photographed" in text


def luminance(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb as WCAG 2 defines it."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    shares = np.array([int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)])
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_texts_and_lines_stand_out_from_every_background(report, scheme):
    block = re.findall(r":root \{(.*?)\}", (report / "style.css").read_text(), re.S)[scheme]
    colours = {name: luminance(colour) for name, colour in re.findall(r"--(\w+): (#\w+)", block)}
    assert luminance("#fff") == pytest.approx(1) and luminance("#000") == 0
    for name in ("ink", "quiet", "accent", "flip", "edge", *(f"s{i}" for i in range(7))):
        least = 4.5 if name in ("ink", "quiet", "accent", "flip") else 3.0  # WCAG 2: text; graphics, controls
        for ground in ("page", "card", "wash"):
            low, high = sorted((colours[name], colours[ground]))
            assert (high + 0.05) / (low + 0.05) >= least, (name, ground)


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


def test_with_trainval_val_is_not_shown_as_held_out(tmp_path, report):
    fake_study.make_report(fake_study.make_workdir(tmp_path / "w"), tmp_path / "out", val_in_train=True)
    page = (tmp_path / "out" / "index.html").read_text()
    assert "val (trained on)" in page and "val (trained on)" not in (report / "index.html").read_text()


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
    def ends(share, n):
        row = with_wilson({"accuracy": share}, n)
        return row["accuracy_low"], row["accuracy_high"]

    assert ends(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)  # tabulated
    assert 0.99999 < ends(1.0, 10)[1] <= 1.0
    assert 0.0 <= ends(0.0, 10)[0] < 1e-5
    assert ends(None, 10) == ends(0.5, None) == ends(0.5, 0) == (None, None)


def images_of(rows):
    return [row["image"] for row in rows]


def test_pictures_of_a_page_are_the_top_patches_with_the_cell_outlined_and_their_map(report):
    page = Parsed(report / "features" / "feature-2.html")
    rows = [row for row in fake_tables.top_patches_table().to_pylist() if row["feature"] == 2]
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
    assert str(lines.line_panel("loss", [lines.Series("train", [0, 1], [None, None])])) == ""
    for ys in ([1.0], [1.0, 1.0], [0.0, 0.0], [-1.0, 1e9], [1e-6, 1e6]):
        svg = str(lines.line_panel("loss", [lines.Series("train", list(range(len(ys))), ys)]))
        assert "nan" not in svg
        assert "<polyline" in svg
    many = [lines.Series(f"a long name {i}", [0, 1], [1.0, 2.0]) for i in range(4)]
    svg = str(lines.line_panel("many", many, y_label="y"))
    above = int(re.search(r'viewBox="0 -(\d+) ', svg).group(1))  # room for a legend of four lines
    rows = [float(y) for y in re.findall(r'<line class="line s\d d\d"[^>]* y1="([-\d.]+)"', svg)]
    assert len(rows) == 4 and -above <= min(rows) and max(rows) <= 8  # above the axis' name
    assert "nan" not in str(histograms.density_histogram("d", [1.0, 1.0], [True, False]))
