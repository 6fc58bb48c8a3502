"""A comparison's report as pages: one HTML file that needs nothing beside it, and Markdown.

Fact text is a stranger's. Every value goes through `printable` and the escape of its page, whatever the template says.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from malmen_cli.evaluation.comparison import Comparison
from malmen_cli.evaluation.plots import Figure
from malmen_cli.evaluation.report_tables import (
    Table,
    cost_table,
    group_table,
    harmonic_table,
    intervals,
    measure_table,
    paper_table,
    score_table,
    worst_table,
)
from malmen_cli.facts import printable

_MARKDOWN = re.compile(r"(^[-+]|[\\`*_{}\[\]#!|~$@^]|:(?=//|\w+:))|(?<![\w.])(www)(?=\.)")


def html_page(comparison: Comparison, figures: Sequence[Figure]) -> str:
    """The report as HTML: figures are data URIs, there is no script, and nothing is fetched."""
    return _page("report.html.jinja", comparison, figures)


def markdown_page(comparison: Comparison, figures: Sequence[Figure]) -> str:
    """The report as Markdown, with the PNG files beside it."""
    return _page("report.md.jinja", comparison, figures)


def data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no table cell, no link."""
    # Entities first: they hold a character that is escaped otherwise.
    for mark, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(mark, entity)
    return _MARKDOWN.sub(lambda found: f"\\{found[1]}" if found[1] else "www&#8203;", text)


def _page(template: str, comparison: Comparison, figures: Sequence[Figure]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    html = ".html." in template

    def shown(value: Any) -> Any:
        if isinstance(value, Markup):
            return value
        text = printable(str(value), limit=None)
        return text if html else Markup(markdown_text(text))

    pages = Environment(
        loader=PackageLoader("malmen_cli.evaluation", "."),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    tables = {
        "curve": score_table(comparison),
        "harmonic_mean": harmonic_table(comparison),
        "paper": paper_table(comparison),
    }
    by_name = {figure.name: figure for figure in figures}
    return pages.get_template(template).render(
        title=title(comparison),
        about=about(comparison),
        command=str(comparison.about.get("command", "")),
        contenders=comparison.question.contenders,
        summary=summary(comparison),
        notes=[*_unfinished(comparison), *comparison.notes],
        warnings=warnings_of(comparison),
        shown=[(by_name[name], table) for name, table in tables.items() if name in by_name],
        data_uri=lambda figure: Markup(data_uri(figure.svg)),
        raw=Markup,
        code=_code,
        measures=measure_table(comparison),
        cost=cost_table(comparison),
        groups=group_table(comparison),
        worst=worst_table(comparison),
        generated=comparison.generated,
        nested=len(comparison.question.sizes) > 1,
        intervals=intervals(comparison),
        row=_markdown_row,
        rule=_markdown_rule,
    )


def title(comparison: Comparison) -> str:
    question = comparison.question
    sizes = question.sizes
    first = f"{sizes[0]:,} to " if len(sizes) > 1 else ""
    return f"{question.model}: {first}{_facts(sizes[-1])} of {question.source}"


def _facts(count: int) -> str:
    return f"{count:,} fact{'' if count == 1 else 's'}"


def about(comparison: Comparison) -> list[tuple[str, str]]:
    """What was asked of what, as names and values."""
    question, more = comparison.question, comparison.about
    options = {name: value for name, value in question.options.items() if name != "malmen"}  # versions say it
    versions = more.get("versions")
    fields = [
        ("Model", question.model),
        ("Base", question.base),
        ("Facts", f"{question.source}, {question.available:,} facts"),
        ("Fact set", question.facts),
        ("Numbers of facts", ", ".join(f"{size:,}" for size in question.sizes)),
        ("Seeds", ", ".join(map(str, question.seeds))),
        *((name.replace("_", " ").capitalize(), _text(value)) for name, value in options.items()),
        ("Versions", ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else ""),
        ("Device", _text(more.get("device"))),
        ("Begun", _text(more.get("created_at")).partition(".")[0]),
    ]
    return [(name, value) for name, value in fields if value]


def summary(comparison: Comparison) -> list[str]:
    """The outcome in sentences: who has the highest harmonic mean, at each number of facts; who has none is named."""
    table = harmonic_table(comparison)
    found = []
    for place, size in enumerate(comparison.question.sizes, 1):
        rows = [(row[0].text, row[place]) for row in table.rows if row[place].text != "-"]
        best = [row for row in rows if row[1].best] or (rows if len(rows) == 1 else [])
        if best:
            label, cell = " and ".join(row[0] for row in best), best[0][1]
            spread = f" ({cell.interval})" if cell.interval and len(best) == 1 else ""
            have = "has" if len(best) == 1 else "have"
            what = f"{label} {have} the highest harmonic mean" if len(rows) > 1 else f"the harmonic mean of {label} is"
            absent = comparison.without(size)
            there = f", without {' and '.join(absent)}," if absent else ""
            found.append(f"At {_facts(size)}{there} {what}{',' if len(rows) > 1 else ''} {cell.text}{spread}.")
    return found


def _unfinished(comparison: Comparison) -> list[str]:
    done, wanted = len(comparison.points), len(comparison.wanted)
    if not comparison.untried:
        return []
    labels = comparison.labels
    by_label = Counter(point.contender for point in comparison.points)
    each = ", ".join(f"{label} {by_label[label]:,} of {wanted // len(labels):,}" for label in labels)
    whose = f" ({each})" if len(labels) > 1 else ""
    return [f"This report is not finished: {done:,} of {wanted:,} points{whose}. The same command goes on with it."]


def warnings_of(comparison: Comparison) -> list[str]:
    """What points were warned of, each with whose it is."""
    return list(
        dict.fromkeys(
            f"{point.contender}, {_facts(point.n_edits)}: {warning}"
            for point in comparison.points
            for warning in point.warnings
        )
    )


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def _code(text: str) -> Any:
    """A fenced block of Markdown whose text cannot end it."""
    from markupsafe import Markup

    shown = printable(text, limit=None)
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}\n{shown}\n{fence}")


def _markdown_row(cells: Sequence[Any]) -> Any:
    from markupsafe import Markup

    shown = []
    for cell in cells:
        if isinstance(cell, str):
            shown.append(markdown_text(printable(cell, limit=None)))
            continue
        text = markdown_text(printable(cell.text, limit=None))
        text = f"**{text}**" if cell.best else text
        shown.append(f"{text} ({cell.interval})" if cell.interval else text)
    return Markup("| " + " | ".join(shown) + " |")


def _markdown_rule(table: Table) -> Any:
    from markupsafe import Markup

    return Markup("|" + "---|" * table.names + "---:|" * (len(table.header) - table.names))
