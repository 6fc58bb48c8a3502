"""The figures of a comparison: scores against the number of facts, one line per method. matplotlib draws them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import log
from typing import TYPE_CHECKING

from malmen_cli.errors import UsageError
from malmen_cli.evaluation.comparison import WAYS, Comparison, Interval, Point, over_seeds
from malmen_cli.evaluation.six_scores import SUBJECTS, those_there

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F")
"""Okabe and Ito's, without the two that vanish on a white or a black page: told apart by the colour-blind too."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLES = ("-", "--", ":", "-.")
INK = "#1f2328"
"""Of all text and axes. In SVG it becomes the colour of the page's text."""
DPI = 200
MARGIN, APART = 0.06, 0.012
"""Shares of the axis of facts, which is logarithmic: left free on either side, and between the lines of two methods."""
WIDTH = 7.2  # inches, as two columns of a paper
_SETTINGS = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 8.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "text.parse_math": False,  # a name may hold a dollar sign
    "svg.hashsalt": "malmen",  # the same points give the same file
    "svg.fonttype": "path",
}
WORDS = {
    "reliability": "Reliability",
    "generalisation": "Generalisation",
    "locality": "Locality (unchanged)",
    "teacher_forced": "teacher-forced",
    "generated": "generated",
}

Pick = Callable[[Point], Interval | None]


@dataclass(frozen=True)
class Panel:
    """One set of axes: what it is of, what is drawn of each point, and the words above and beside it."""

    name: str
    pick: Pick
    title: str = ""
    beside: str = ""


@dataclass(frozen=True)
class Figure:
    """A drawn figure: file name without ending, a title, what it says to who cannot see it, and its two files."""

    name: str
    title: str
    alt: str
    png: bytes
    svg: str


def require_plots() -> None:
    """Refuse before anything is computed what could not be drawn at the end.

    Raises:
        UsageError: matplotlib or jinja2 is not installed.
    """
    absent = [name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None]
    if absent:
        raise UsageError(
            f"a report of scores against the number of facts needs {' and '.join(absent)}, not installed here",
            remedy='install it: pip install "malmen[plot]"; one number of facts, and one method, need no report',
        )


@dataclass(frozen=True)
class Sheet:
    """A figure to be drawn: its panels, row by row, so many columns of them."""

    name: str
    title: str
    panels: tuple[Panel, ...]
    columns: int


def figures(comparison: Comparison) -> list[Figure]:
    """The six scores; their harmonic mean; and the paper's three scores. All against the number of facts."""
    return [figure_of(comparison, sheet) for sheet in sheets(comparison)]


def sheets(comparison: Comparison) -> list[Sheet]:
    """What `figures` draws."""
    ways = [way for way in WAYS if way == "teacher_forced" or comparison.generated]
    six = tuple(
        Panel(
            f"{WORDS[subject]}, {WORDS[way]}",
            lambda point, subject=subject, way=way: point.scores.of(subject).by(way),  # type: ignore[misc]
            title=WORDS[subject] if way == ways[0] else "",
            beside=WORDS[way] if subject == SUBJECTS[0] else "",
        )
        for way in ways
        for subject in SUBJECTS
    )
    mean = Panel("Harmonic mean", lambda point: point.scores.harmonic_mean, beside="harmonic mean")
    paper = (
        Panel("ES", lambda point: _bare(point.after.ES), "ES: edit success", "teacher-forced"),
        Panel("GS", lambda point: _bare(point.after.GS), "GS: rephrases"),
        Panel("LS", lambda point: _bare(point.after.LS), "LS: unrelated, gold answers"),
    )
    there = sum(any(panel.pick(point) is not None for point in comparison.points) for panel in six)
    scores = those_there(there or len(six))  # before any point those that are to come
    return [
        Sheet("curve", f"{scores[0].upper()}{scores[1:]} against the number of facts", six, 3),
        Sheet("harmonic_mean", f"Harmonic mean of {scores}", (mean,), 1),
        Sheet("paper", "ES, GS and LS as in the paper", paper, 3),
    ]


def _bare(value: float | None) -> Interval | None:
    return None if value is None else Interval(value=value, low=value, high=value)


def figure_of(comparison: Comparison, sheet: Sheet) -> Figure:
    from matplotlib import rc_context

    png, svg = BytesIO(), BytesIO()
    with rc_context(_SETTINGS):  # type: ignore[arg-type]
        canvas = canvas_of(comparison, sheet)
        canvas.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
        canvas.set_layout_engine("none")  # everything has its place now: it need not be found again
        canvas.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    page = _on_any_page(svg.getvalue().decode())
    return Figure(sheet.name, sheet.title, _words(comparison, sheet), png.getvalue(), page)


def canvas_of(comparison: Comparison, sheet: Sheet) -> Canvas:
    """The figure as matplotlib has it; what is where is found when it is drawn."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    columns = sheet.columns
    rows = -(-len(sheet.panels) // columns)
    labels = _drawn(comparison)
    with rc_context(_SETTINGS):  # type: ignore[arg-type]
        width = WIDTH if columns > 1 else WIDTH / 2 + 0.6
        fitting = max(1, int(width / (0.6 + 0.075 * max(map(len, labels)))))
        lines = -(-len(labels) // fitting)
        height = (1.95 if columns > 1 else 2.6) * rows + 0.45 + 0.24 * lines
        canvas = Canvas(figsize=(width, height), layout="constrained")
        axes = canvas.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for panel, place in zip(sheet.panels, axes.flat, strict=True):
            _draw(place, comparison, panel, width / columns)
        for place in axes[-1]:
            place.set_xlabel("facts edited at once")
        handles, names = axes.flat[0].get_legend_handles_labels()
        in_a_row = -(-len(labels) // lines)
        canvas.legend(handles, names, loc="outside lower center", ncols=in_a_row, frameon=False, handlelength=2.6)
    return canvas


def _drawn(comparison: Comparison) -> list[str]:
    """Labels of the lines: a method without any point yet has none, and its name beside nothing would mislead."""
    there = {point.contender for point in comparison.points}
    return [label for label in comparison.labels if label in there] or comparison.labels


def _draw(axes: Axes, comparison: Comparison, panel: Panel, inches: float) -> None:
    sizes = comparison.question.sizes
    labels, all_labels = _drawn(comparison), comparison.labels
    margin = (sizes[-1] / sizes[0]) ** MARGIN * 1.1
    low, high = sizes[0] / margin, sizes[-1] * margin
    across = high / low
    for place, label in enumerate(labels):
        index = all_labels.index(label)  # a method keeps its colour when the others have points too
        found = [(size, score) for size in sizes if (score := _score(comparison, label, size, panel.pick)) is not None]
        if not found:  # bars without a place would leave the layout none
            continue
        # Lines that fall together are moved apart a little, so that no interval hides another.
        shift = across ** (APART * (place - (len(labels) - 1) / 2))
        x = [size * shift for size, _ in found]
        y = [score.value for _, score in found]
        below = [max(0.0, score.value - score.low) for _, score in found]
        above = [max(0.0, score.high - score.value) for _, score in found]
        axes.errorbar(
            x,
            y,
            yerr=[below, above],
            label=label,
            color=COLOURS[index % len(COLOURS)],
            linestyle=STYLES[index // len(COLOURS) % len(STYLES)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=4,
            linewidth=1.4,
            elinewidth=0.9,
            capsize=1.8,
            capthick=0.9,
            clip_on=False,
        )
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    _name_sizes(axes, sizes, inches / log(across))
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(True, color=INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)
    if panel.title:
        axes.set_title(panel.title)
    if panel.beside:
        axes.set_ylabel(panel.beside)


def _name_sizes(axes: Axes, sizes: Sequence[int], scale: float) -> None:
    """A tick at every number of facts, and a label where there is room for it; the largest always has one.

    Args:
        scale: inches, about, in which numbers grow by a factor of e.
    """
    named: list[int] = []
    for size in reversed(sizes):
        room = 0.07 * len(f"{size:,}") + 0.08  # inches
        if not named or log(named[-1] / size) * scale * 0.8 >= room:
            named.append(size)
    axes.set_xticks(sizes, [f"{size:,}" if size in named else "" for size in sizes])
    axes.minorticks_off()


def _score(comparison: Comparison, label: str, size: int, pick: Pick) -> Interval | None:
    return over_seeds([pick(point) for point in comparison.of(label, size)])


def _words(comparison: Comparison, sheet: Sheet) -> str:
    """The figure for who cannot see it: its lines, and where the best and the worst of them end."""
    labels, sizes = _drawn(comparison), comparison.question.sizes
    parts = []
    for panel in sheet.panels:
        scores = [(label, _score(comparison, label, sizes[-1], panel.pick)) for label in labels]
        there = sorted(((score.value, label) for label, score in scores if score is not None), reverse=True)
        ends = there[:1] + there[1:][-1:]
        if ends:
            parts.append(f"{panel.name}: " + ", ".join(f"{label} {value:.2f}" for value, label in ends))
    count = f"{sizes[0]:,} to {sizes[-1]:,} facts" if len(sizes) > 1 else f"{sizes[0]:,} facts"
    last = f" At {sizes[-1]:,} facts, best and worst: {'; '.join(parts)}." if parts else ""
    return f"{sheet.title}: lines of {', '.join(labels)}, at {count}.{last} The table below has all values."


def _on_any_page(svg: str) -> str:
    """The SVG with text and axes in one colour on a light page and another on a dark one, and no XML prologue."""
    body = svg[svg.index("<svg") :].replace(INK, "currentColor")
    style = (
        f"<style>svg{{color:{INK}}}"
        "@media (prefers-color-scheme: dark){svg{color:#e6e8eb}}"
        "@media print{svg{color:#000}}</style>"
    )
    end = body.index(">") + 1
    return body[:end] + style + body[end:]
