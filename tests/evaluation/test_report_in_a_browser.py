"""The report as a reader opens it: from disk, in Chromium, without a network."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy
import pytest
from chromium import Browser, browsing
from matplotlib.image import imread
from reports import NASTY, SHOWN, made_up

from malmen_cli.evaluation.plots import figures
from malmen_cli.evaluation.report_pages import html_page

IMAGES = """
[...document.images].map(image => ({
    done: image.complete, wide: image.naturalWidth, shown: image.getBoundingClientRect().width, alt: image.alt
}))
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    comparison = made_up(("malmen", "ultraedit", "locft-bf"), text=NASTY)
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(html_page(comparison, figures(comparison)), "utf-8")
    return path


def pixels(browser: Browser) -> Any:
    return imread(BytesIO(browser.screenshot()), format="png")[..., :3]


def test_it_renders_whole_and_asks_nobody_for_anything(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert str(browser.value("document.title")).startswith("tiny: 16 to 256 facts of <script>alert(1)</script>")
    images = browser.value(IMAGES)
    assert len(images) == 3
    assert all(image["done"] and image["wide"] > 0 and image["shown"] > 300 and image["alt"] for image in images)
    tables = browser.value("[...document.querySelectorAll('table')].map(t => [t.rows.length, t.caption.innerText])")
    assert len(tables) >= 7 and all(rows > 1 and caption for rows, caption in tables)
    assert tables[0][0] == 1 + 3 * 3
    boxes = browser.value("[...document.querySelectorAll('table')].map(t => t.getBoundingClientRect().height)")
    assert min(boxes) > 30
    assert browser.complaints == []
    assert {url.partition(":")[0] for url in browser.requested} <= {"file", "data"}
    assert [url for url in browser.requested if url.startswith("file:")] == [page.resolve().as_uri()]


def test_a_strangers_text_is_no_markup(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.value("document.scripts.length") == 0
    assert browser.value("document.querySelectorAll('td img, dd img, p img, a[href], b c').length") == 0
    text = browser.value("[...document.querySelectorAll('td')].map(cell => cell.textContent).join('\\n')")
    assert SHOWN in text
    assert SHOWN in browser.value("document.querySelector('pre').textContent")


def test_a_script_would_not_run(browser: Browser, page: Path, tmp_path: Path) -> None:
    """The control of the two tests above: were something not escaped, the page's policy would still hold it off."""
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text("utf-8").replace("<main>", "<main><script>document.title='run'</script>"), "utf-8")
    before = len(browser.complaints)
    browser.open(broken)
    assert browser.value("document.scripts.length") == 1
    assert browser.value("document.title") != "run"
    assert any("Content Security Policy" in complaint for complaint in browser.complaints[before:])
    del browser.complaints[before:]


@pytest.mark.parametrize("width", [1000, 400])
def test_no_width_makes_the_page_scroll_sideways(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width=width)
    inner, outer = browser.value("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert inner <= outer and width - outer < 20  # a scroll bar


def test_light_and_dark(browser: Browser, page: Path) -> None:
    shares = {}
    for dark in (False, True):
        browser.open(page, dark=dark)
        found = pixels(browser)
        bright = found.mean(-1)
        shares[dark] = (bright > 0.85).mean()
        # Lines of all three methods are there on both pages, in their colours.
        for colour in ((0, 114, 178), (213, 94, 0), (0, 158, 115)):
            near = numpy.abs(found - numpy.array(colour) / 255).max(-1) < 0.06
            assert near.sum() > 300, (dark, colour)
        # So is what is written beside the axes: as dark as the page is bright, or the other way round.
        box = browser.value("(r => [r.x, r.y, r.width, r.height])(document.images[0].getBoundingClientRect())")
        x, y, width, height = (round(number) for number in box)
        figure = bright[y : y + height, x : x + width]
        assert ((figure > 0.6) if dark else (figure < 0.4)).mean() > 0.005
    assert shares[False] > 0.8 and shares[True] < 0.2


def test_every_figure_and_table_has_a_name_for_who_cannot_see_it(browser: Browser, page: Path) -> None:
    browser.open(page)
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node.get("ignored") and node["role"]["value"] in ("image", "table", "region", "heading")
    ]
    roles = [role for role, _ in named]
    assert roles.count("image") == 3 and roles.count("table") >= 7 and roles.count("region") >= 7
    assert all(name for _, name in named)
    levels = browser.value("[...document.querySelectorAll('h1,h2,h3')].map(h => h.tagName)")
    assert levels[0] == "H1" and set(levels[1:]) == {"H2"}
