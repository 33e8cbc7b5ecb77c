"""The report in a real browser: no errors, no network, what is clicked happens, readable for everyone.

Needs chromium on PATH, and playwright and axe-playwright-python of the test extra; skipped without them.
"""

import re
import shutil

import pytest

from tests.report import fake_tables, fake_world

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (jsae[test])")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
VIEWS = ("index.html", "features.html#feature-1+2", "features/feature-1.html", "images.html")
# Of table rows: the texts of their cells, but for pictures.
CELLS = "rows => rows.map(r => [...r.cells].filter(c => c.className != 'crops').map(c => c.innerText.trim()))"
FEATURES = fake_tables.features_table().to_pylist()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def new_page(browser, report):
    """(view, **context options) -> (page, what went wrong on it); pages of equal options share a context."""
    contexts = {}

    def new_page_(view, **options):
        key = repr(sorted(options.items()))
        if key not in contexts:
            contexts[key] = browser.new_context(**options)
        page, wrong = contexts[key].new_page(), []

        def heard(message):
            if "Canvas2D: Multiple readback" not in message.text:  # these tests do that, not the page
                wrong.append(f"{view}: {message.type}: {message.text}")

        def asked(request):
            if not re.match(r"file:|data:,", request.url):
                wrong.append(f"{view}: asked {request.url}")

        page.on("console", heard)
        page.on("pageerror", lambda error: wrong.append(f"{view}: {error}"))
        page.on("dialog", lambda dialog: wrong.append(f"{view}: dialog {dialog.message}"))
        page.on("requestfailed", lambda request: wrong.append(f"{view}: failed {request.url}"))
        page.on("request", asked)
        page.goto(f"{report.as_uri()}/{view}")
        return page, wrong

    yield new_page_
    for context in contexts.values():
        context.close()


@pytest.fixture
def open_page(new_page):
    """(view, **context options) -> page; at the end nothing may have gone wrong and no host been asked."""
    opened = []

    def open_(view, **options):
        opened.append(new_page(view, **options))
        return opened[-1][0]

    yield open_
    for page, _ in opened:
        page.close()
    assert [what for _, wrong in opened for what in wrong] == []


@pytest.fixture(scope="module", params=VIEWS)
def view(request, new_page):
    """A page opened once for all tests that look at every view, as `open_page` opens it."""
    page, wrong = new_page(request.param)
    yield page
    page.close()
    assert wrong == []


def column(page, head: str) -> list[str]:
    """The texts of a column of the table of features as it is shown."""
    heads = [text.strip() for text in page.locator("#features thead th").all_inner_texts()]
    index = next(i for i, text in enumerate(heads) if text.replace("\xad", "").startswith(head))
    return page.locator(f"#features tbody tr > :nth-child({index + 1})").all_inner_texts()


def shown_features(page) -> list[int]:
    return [int(text) for text in column(page, "feature")]


def numbers(texts: list[str]) -> list[float]:
    return [float(text.replace("−", "-")) for text in texts if text != "–"]


def faults(page, **options) -> list:
    """What axe-core calls serious or critical; frames are views of their own."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed")
    # Preloading would ask for files by XMLHttpRequest.
    options = {"preload": False, "iframes": False, "resultTypes": ["violations"]} | options
    found = axe.Axe().run(page, options=options).response
    assert found["passes"]
    return [
        (fault["id"], node["html"], node.get("failureSummary"))
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


# In the order of the file, all tests of a view use one page; each sets what it needs.


def test_a_view_opens_with_its_script_and_all_pictures(view):
    assert view.title()
    assert view.evaluate("document.documentElement.classList.contains('scripted')")
    for y in range(0, 4000, 800):  # pictures that load when they come into view
        view.evaluate(f"window.scrollTo(0, {y})")
    broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
    assert view.evaluate(broken) == []


def test_axe_finds_no_serious_or_critical_fault(view):
    view.emulate_media(color_scheme="light")
    assert faults(view) == []


def test_axe_finds_enough_contrast_on_dark_pages(view):
    view.emulate_media(color_scheme="dark")
    assert faults(view, runOnly=["color-contrast"]) == []


def test_a_view_fits_a_phone(view):
    view.set_viewport_size({"width": 400, "height": 800})
    assert view.evaluate("document.documentElement.scrollWidth") <= 400
    # what lies in an image's article is cut, not counted above
    fits = "e.getBoundingClientRect().right <= 400 && getComputedStyle(e).overflowX == 'auto'"
    assert view.evaluate(f"[...document.querySelectorAll('.scroll')].every(e => {fits})")


def test_the_table_is_sorted_by_a_head_and_unknown_numbers_stay_last(open_page):
    page = open_page("features.html")
    head = page.get_by_role("button", name="purity16")
    head.click()
    first = column(page, "purity16")
    head.click()
    second = column(page, "purity16")
    assert numbers(first) == sorted(numbers(first), reverse=True)
    assert numbers(second) == sorted(numbers(second))
    known = sorted(row["purity16"] for row in FEATURES if row["purity16"] is not None)
    assert len(known) < len(FEATURES)  # the table has more than one page; the first begins with the extremes
    assert numbers(first)[0] == pytest.approx(known[-1], rel=5e-3)
    assert numbers(second)[0] == pytest.approx(known[0], rel=5e-3)
    assert "by purity16" in page.locator("#status").inner_text()
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("purity16")
    page.get_by_role("button", name="next").click()
    assert numbers(column(page, "purity16"))[-1] == pytest.approx(known[-1], rel=5e-3)
    assert column(page, "purity16")[-1] == "–"


def test_sorting_by_keyboard(open_page):
    page = open_page("features.html")
    page.get_by_role("button", name="density").focus()
    page.keyboard.press("Enter")
    values = numbers(column(page, "density"))
    assert values == sorted(values, reverse=True)
    page = open_page("index.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"


def test_filters_and_search_show_exactly_the_rows_that_match(open_page):
    page = open_page("features.html")
    selective = {row["feature"] for row in FEATURES if row["class_selective"]}
    page.get_by_label("Kind").select_option("class-selective")
    assert set(shown_features(page)) == selective
    assert page.locator("#status").inner_text().startswith(f"{len(selective)} of {len(FEATURES)} features")
    page.get_by_label("Top class").select_option("Dart")
    assert set(shown_features(page)) == {
        row["feature"] for row in FEATURES if row["class_selective"] and row["top_class_name"] == "Dart"
    }
    page.get_by_role("button", name="reset").click()
    page.wait_for_function("document.querySelectorAll('#features tbody tr').length > 40")
    page.get_by_label("Search").fill("7")
    assert 7 in shown_features(page)
    assert set(shown_features(page)) == {
        row["feature"]
        for row in FEATURES
        if row["feature"] == 7 or "7" in (row["top_class_name"] or "")  # Boreal 7
    }
    page.get_by_label("Search").fill("cirrus ünï")
    assert set(column(page, "top class")) == {"Cirrus Ünïted"}
    page.get_by_label("Search").fill("")
    page.get_by_label("purity16 at least").fill("0.75")
    assert set(shown_features(page)) == {r["feature"] for r in FEATURES if (r["purity16"] or 0) >= 0.75}
    page.get_by_label("Search").fill("no such class")
    assert shown_features(page) == [] and "0 of 64" in page.locator("#status").inner_text()


def test_the_script_shows_the_rows_that_are_there_without_it(open_page):
    plain = open_page("features.html", java_script_enabled=False)
    assert plain.locator("#explorer").is_hidden()
    expected = {row[0]: row[1:] for row in plain.locator("noscript tbody tr").evaluate_all(CELLS)}
    assert len(expected) == len(FEATURES)
    page = open_page("features.html")
    found = {}
    while True:
        for row in page.locator("#features tbody tr").evaluate_all(CELLS):
            found[row[1]] = row[2:]  # without the tick
        if page.locator("#later").is_disabled():
            break
        page.locator("#later").click()
    assert found == expected


def alpha(page, selector="canvas.heat") -> list[int]:
    return page.locator(selector).first.evaluate(
        "c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        " return Array.from({length: c.width * c.height}, (_, i) => d[4 * i + 3]); }"
    )


def test_sliders_change_opacity_and_hide_weak_cells(open_page):
    page = open_page("features/feature-1.html")
    before = alpha(page)
    assert max(before) > 0
    page.get_by_label("Heat map opacity").fill("25")
    fainter = alpha(page)
    assert fainter == pytest.approx([a / 3 for a in before], abs=1.5)  # 75% before; rounded twice
    assert page.locator("output[for=opacity]").inner_text() == "25%"
    page.get_by_label("Show above").fill("30")
    values = page.locator("canvas.heat").first.evaluate(
        "c => Array.from(atob(c.dataset.map), x => x.charCodeAt(0))"
    )
    assert [a > 0 for a in alpha(page)] == [v > 0.3 * 255 for v in values]
    assert 0 < sum(v > 0.3 * 255 for v in values) < len(values)


def test_an_image_shows_the_map_of_the_feature_that_is_asked_for(open_page):
    page = open_page("images.html")
    article = page.locator("article").first
    first = article.locator("canvas").get_attribute("data-map")
    button = article.get_by_role("button", name="map of feature").nth(1)
    button.click()
    assert article.locator("canvas").get_attribute("data-map") == button.get_attribute("data-map") != first
    assert button.get_attribute("aria-pressed") == "true"
    x, y = (int(n) for n in button.get_attribute("data-cell").split(","))
    cell, picture = article.locator(".cell").bounding_box(), article.locator("img").bounding_box()
    height, width = fake_world.GRID
    assert cell["x"] == pytest.approx(picture["x"] + x * picture["width"] / width, abs=1)  # whole pixels
    assert cell["y"] == pytest.approx(picture["y"] + y * picture["height"] / height, abs=1)


def test_deep_links_lead_to_one_feature_or_two_side_by_side(open_page):
    page = open_page("index.html#feature-1")
    page.wait_for_url("**/features.html#feature-1")
    assert page.locator("#panel-title").inner_text() == "Feature 1"
    frames = page.locator("#frames iframe")
    assert frames.count() == 1
    inside = page.frame_locator("#frames iframe").locator("h1")
    assert inside.inner_text() == "Feature 1"
    assert page.frame_locator("#frames iframe").locator("nav.top").is_hidden()
    page.get_by_label("show feature 2 here").check()
    page.wait_for_url("**#feature-1+2")
    assert [frame.get_attribute("title") for frame in frames.all()] == ["Feature 1", "Feature 2"]
    page.get_by_role("spinbutton", name="beside feature").fill("5")
    page.get_by_role("button", name="show", exact=True).click()
    page.wait_for_url("**#feature-1+5")
    assert page.get_by_label("show feature 2 here").is_checked() is False
    page.get_by_role("button", name="close").click()
    assert page.locator("#panel").is_hidden() and "#" not in page.url
    page = open_page("features.html#feature-4")  # dead: it has no page
    assert "has no page here" in page.locator("#panel-title").inner_text()


def test_a_class_name_with_markup_is_only_text(open_page):
    page = open_page("features.html")  # a dialog of the name's script would be heard
    page.get_by_label("Search").fill("<script>")
    assert set(column(page, "top class")) == {fake_world.MARKUP}
    assert page.locator("main script").count() == 0


def test_everything_is_there_without_the_script(open_page):
    for view in ("index.html", "features/feature-1.html", "images.html"):
        page = open_page(view, java_script_enabled=False)
        assert page.locator("table:visible").count() > 0
        assert page.locator("[data-needs-script]:visible").count() == 0
    page = open_page("features.html#feature-40", java_script_enabled=False)
    assert page.locator("#feature-40").is_visible()


def test_printing_shows_all_rows_and_no_controls(open_page):
    page = open_page("features.html")
    page.emulate_media(media="print")
    assert page.locator("nav.top").is_hidden() and page.locator("#filters").is_hidden()
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#features tbody tr").count() == len(FEATURES)
    assert page.pdf()[:4] == b"%PDF"


def test_no_storage_is_needed(browser, report):
    """Every storage API throws, as it does inside a sandbox."""
    throwing = "".join(
        f"Object.defineProperty(window, '{name}', {{get() {{ throw new DOMException('denied') }}}});"
        for name in ("localStorage", "sessionStorage", "indexedDB", "caches")
    )
    with browser.new_context() as context:
        context.add_init_script(throwing)
        page, wrong = context.new_page(), []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"{report.as_uri()}/features.html#feature-1")
        assert len(shown_features(page)) == 50
        page.frame_locator("#frames iframe").locator("canvas.heat").first.wait_for()
        assert max(alpha(page.frames[1])) > 0
        assert wrong == []
