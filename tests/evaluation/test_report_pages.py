"""The report of a comparison: what its pages say, that strangers' text stays text, and that its figures can be read."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy
import pytest
from reports import NASTY, SHOWN, made_up, without

from malmen_cli.evaluation.comparison import SCHEMA, Comparison, Interval, over_seeds
from malmen_cli.evaluation.plots import COLOURS, DPI, INK, Figure, canvas_of, figure_of, figures, sheets
from malmen_cli.evaluation.report_pages import html_page, markdown_page, markdown_text
from malmen_cli.evaluation.report_tables import harmonic_table, score_table


class Page(HTMLParser):
    """A page's tags with their attributes, its text, and what was never closed."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", list[str]()
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def drawn() -> tuple[Comparison, list[Figure]]:
    comparison = made_up(text=NASTY)
    return comparison, figures(comparison)


def test_json_comes_back_and_a_later_version_is_read(drawn: tuple[Comparison, list[Figure]]) -> None:
    comparison, _ = drawn
    text = comparison.to_json()
    assert text.isascii() and Comparison.from_json(text) == comparison
    later = json.loads(text) | {"more": 1}
    later["points"][0]["more"] = 2
    assert later["schema"] == SCHEMA and Comparison.from_json(json.dumps(later)) == comparison
    for broken in ("{}", "[]", text.replace(SCHEMA, "another"), text.replace('"value": 0.', '"value": "x', 1)):
        with pytest.raises(ValueError):
            Comparison.from_json(broken)


def test_points_that_are_missing_are_known() -> None:
    whole = made_up(sizes=(4, 8), seeds=(0, 1))
    assert whole.missing == [] and len(whole.wanted) == len(whole.points) == 8
    half = whole.model_copy(update={"points": whole.points[:3]})
    assert half.missing == whole.wanted[3:]
    page = html_page(half, [])
    assert "not finished: 3 of 8 points" in page and "not finished" not in html_page(whole, [])


@pytest.mark.parametrize("made", [{("malmen", 0)}, {("malmen", 0), ("malmen", 1), ("memit", 0)}])
def test_a_report_that_was_interrupted_says_what_is_missing_and_compares_only_what_compares(
    made: set[tuple[str, int]],
) -> None:
    """Whole runs of one method come before another's where they load the model differently."""
    whole = made_up(labels=("malmen", "memit"), sizes=(4, 8), seeds=(0, 1))
    points = [point for point in whole.points if (point.contender, point.seed) in made]
    part = whole.model_copy(update={"points": points})
    page = markdown_page(part, [])
    own, other = (sum(point.contender == label for point in points) for label in whole.labels)
    assert f"(malmen {own} of 4, memit {other} of 4)" in page
    # A gap is a row of its own; the mean of two draws is no better or worse than another method's one draw.
    table = score_table(part)
    assert "of one alone its 95 % bootstrap interval" in table.caption
    assert "where some are missing" not in score_table(whole).caption
    assert [row[0].text for row in table.rows] == ["malmen", "memit"] * 2
    assert not any(cell.best for row in [*table.rows, *harmonic_table(part).rows] for cell in row)
    assert "has the highest" not in page and "has the highest" in markdown_page(whole, [])
    assert ("At 8 facts, without memit, the harmonic mean of malmen is" in page) == (other == 0)
    # No line, no name beside one; a line has the colour that it will keep.
    canvas = canvas_of(part.model_copy(update={"points": points[-1:]}), sheets(part)[1])
    [legend] = canvas.legends
    assert [text.get_text() for text in legend.get_texts()] == [points[-1].contender]
    [line] = [line for line in canvas.axes[0].lines if line.get_linestyle() == "-"]
    assert line.get_color() == COLOURS[whole.labels.index(points[-1].contender)]


def test_several_that_are_best_are_all_named() -> None:
    whole = made_up(labels=("malmen", "memit", "ft"), sizes=(8,))
    first, _, last = whole.points
    same = whole.model_copy(update={"points": [first, first.model_copy(update={"contender": "memit"}), last]})
    assert "At 8 facts malmen and memit have the highest harmonic mean, 0." in markdown_page(same, [])


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_what_intervals_are_is_said_wherever_they_are_explained(seeds: tuple[int, ...]) -> None:
    whole = made_up(seeds=seeds)
    where = (score_table(whole).caption, harmonic_table(whole).caption, html_page(whole, []), markdown_page(whole, []))
    for text in where:
        assert ("smallest and the largest of 3 draws" in text) == (len(seeds) > 1)
        assert ("bootstrap interval over facts" in text) == (len(seeds) == 1)


@pytest.mark.parametrize(
    ("by_default", "chosen", "same"), [(True, True, True), (True, False, False), (False, False, True)]
)
def test_whether_ends_are_asked_for_is_the_models_own_choice_where_none_is_made(
    by_default: bool, chosen: bool, same: bool
) -> None:
    question = made_up().question
    one, other = question.contenders
    pair = [one, other.model_copy(update={"settings": {"end_of_text": chosen}})]
    assert question.model_copy(update={"contenders": pair, "ends_by_default": by_default}).asks_the_same == same


def test_over_seeds_is_the_mean_from_the_smallest_to_the_largest() -> None:
    one, two = Interval(value=0.2, low=0.1, high=0.3), Interval(value=0.4, low=0.0, high=0.9)
    assert over_seeds([one, None]) == one and over_seeds([]) is None
    found = over_seeds([one, two])
    assert found is not None and (found.low, found.high) == (0.2, 0.4) and found.value == pytest.approx(0.3)


def test_html_is_whole_and_needs_nothing_beside_it(drawn: tuple[Comparison, list[Figure]]) -> None:
    page = Page(html_page(*drawn))
    assert page.open == []
    images = page.of("img")
    assert len(images) == 3
    for image in images:
        assert (image["src"] or "").startswith("data:image/svg+xml;base64,")
        assert "The table below has all values." in (image["alt"] or "")
    assert len(page.of("table")) == len(page.of("caption")) >= 7
    assert {attributes.get("scope") for attributes in page.of("th")} == {"col", "row"}
    assert not page.of("script") and not page.of("iframe")
    links = [attributes.get("src") or attributes.get("href") for _, attributes in page.tags]
    assert all(link.startswith("data:") for link in links if link)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    [policy] = [meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


def test_a_strangers_text_is_shown_letter_by_letter(drawn: tuple[Comparison, list[Figure]]) -> None:
    comparison, _ = drawn
    html, markdown = html_page(comparison, drawn[1]), markdown_page(comparison, drawn[1])
    # In the title and heading, the notes, the warnings, groups, worst facts, the source, contenders and the command.
    assert Page(html).text.count(SHOWN) >= 12
    for text in (html, markdown):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", text)
        assert "<script>" not in text.replace(f"malmen eval {SHOWN}", "") and "onerror=alert(1)>" not in text.replace(
            f"malmen eval {SHOWN}", ""
        )
    # Only the fenced command has it as it is, and no row of a table has gained a cell.
    assert markdown.count("<script>") == 1 and f"```\nmalmen eval {SHOWN}\n```" in markdown
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        cells = [len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()]
        assert len(set(cells)) == 1, block


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a_b*c", r"a\_b\*c"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("x | y", r"x \| y"),
        ("http://a.b", r"http\://a.b"),
        ("www.a.b", "www&#8203;.a.b"),
        ("16: 3", "16: 3"),
        ("$x$ ~y~ #z @w", r"\$x\$ \~y\~ \#z \@w"),
    ],
)
def test_markdown_text(text: str, shown: str) -> None:
    assert markdown_text(text) == shown


def test_a_fence_is_longer_than_any_in_the_command() -> None:
    page = markdown_page(made_up(text="````"), [])
    assert "`````\nmalmen eval ````\n`````" in page


def test_tables_mark_the_best_at_each_number_of_facts(drawn: tuple[Comparison, list[Figure]]) -> None:
    comparison, _ = drawn
    table = score_table(comparison)
    assert [row[1].text for row in table.rows] == ["16", "16", "64", "64", "256", "256"]
    assert [row[-1].best for row in table.rows] == [True, False] * 3
    score = comparison.points[0].scores.harmonic_mean
    assert score is not None
    assert (table.rows[0][-1].text, table.rows[0][-1].interval) == (
        f"{score.value:.3f}",
        f"{score.low:.2f} to {score.high:.2f}",
    )
    # One method alone is not the best of anything.
    assert not any(cell.best for row in score_table(made_up(labels=("malmen",))).rows for cell in row)
    assert len(harmonic_table(comparison).rows) == 2


def test_without_free_answers_there_are_three_scores() -> None:
    comparison = made_up(sizes=(4,), generated=False)
    page = html_page(comparison, [])
    assert "Generated" not in page and "Reliability, generated" not in page
    assert len(score_table(comparison).header) == 6
    [curve, _, _] = sheets(comparison)
    assert curve.title.startswith("3 scores ") and len(curve.panels) == 3


def test_titles_count_the_scores_that_are_there() -> None:
    whole = made_up(sizes=(4,))
    for comparison, words in (
        (whole, "the six scores"),
        (without(whole, "generalisation"), "4 scores"),
        (without(made_up(sizes=(4,), generated=False), "generalisation", "locality"), "1 score"),
        (whole.model_copy(update={"points": []}), "3 scores"),
    ):
        curve, mean, _ = (sheet.title for sheet in sheets(comparison))
        assert curve.lower() == f"{words} against the number of facts" and mean == f"Harmonic mean of {words}"
    drawn = figures(without(whole, "generalisation"))
    for page in (html_page, markdown_page):
        assert "six scores" not in page(without(whole, "generalisation"), drawn).lower()


def test_figures_are_the_same_every_time_and_lines_differ(drawn: tuple[Comparison, list[Figure]]) -> None:
    from matplotlib.image import imread

    comparison, first = drawn
    assert [figure.name for figure in first] == ["curve", "harmonic_mean", "paper"]
    assert figure_of(comparison, sheets(comparison)[1]) == first[1]
    for figure in first:
        pixels = imread(BytesIO(figure.png), format="png")[..., :3]
        assert pixels.shape[1] > 3 * DPI
        # The page is white, and both methods' colours and the ink are on it.
        assert (pixels == 1).all(-1).mean() > 0.5
        for colour in (*COLOURS[:2], INK):
            wanted = numpy.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
            assert (numpy.abs(pixels - wanted).max(-1) < 0.02).sum() > 100, (figure.name, colour)
        assert INK not in figure.svg.partition("</style>")[2] and "currentColor" in figure.svg


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("absent", [("generalisation",), ("locality",), ("generalisation", "locality")])
def test_what_was_never_asked_leaves_its_panel_empty(absent: tuple[str, ...]) -> None:
    """Nothing is drawn there, and the figure is laid out as with it."""
    whole = made_up(sizes=(4, 8))
    part = without(whole, *absent)
    for ours, theirs in zip(sheets(part), sheets(whole), strict=True):
        canvas, full = canvas_of(part, ours), canvas_of(whole, theirs)
        for drawn in (canvas, full):
            drawn.draw_without_rendering()
        for place, other in zip(canvas.axes, full.axes, strict=True):
            assert place.get_position().width == pytest.approx(other.get_position().width, rel=0.05)
        [legend], [words] = canvas.legends, full.legends
        assert [x.get_text() for x in legend.get_texts()] == [x.get_text() for x in words.get_texts()]
    assert len(figures(part)) == 3
    # Nor does one without any point yet, whose methods all broke down.
    assert len(figures(part.model_copy(update={"points": []}))) == 3


def test_nothing_is_drawn_over_something_else() -> None:
    """Titles, tick labels and legend of a figure with many methods and numbers of facts do not overlap."""
    from matplotlib.text import Text

    many = made_up(
        labels=("malmen 41e9c52d43", "malmen 0123456789", "ultraedit", "memit", "mend", "ft", "locft-bf"),
        sizes=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 16384),
    )
    for sheet in sheets(many):
        canvas = canvas_of(many, sheet)
        canvas.draw_without_rendering()
        texts = [text for text in canvas.findobj(Text) if text.get_text() and text.get_visible()]
        boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
        assert len(boxes) > 15
        for place, (words, box) in enumerate(boxes):
            assert min(box.x0, box.y0) >= -1, words
            assert box.x1 <= canvas.bbox.x1 + 1 and box.y1 <= canvas.bbox.y1 + 1, words
            for others, other in boxes[place + 1 :]:
                assert not box.overlaps(other), (words, others)
