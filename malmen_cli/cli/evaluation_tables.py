"""How an evaluation is shown: a sample of answers, the scores before and after, and what the words mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from malmen_cli.cli.output import percent, plural, print_table, said, tell
from malmen_cli.facts import printable

if TYPE_CHECKING:
    from malmen_cli.evaluation.bootstrap import Score
    from malmen_cli.evaluation.groups import GroupBy
    from malmen_cli.evaluation.measures import Change
    from malmen_cli.evaluation.report import Kind, Report
    from malmen_cli.operations.evaluated import Evaluated

_LEGEND = """\
base -> edited [95 % interval over facts]; 0 to 1, 1 is best
ES              the edited facts are said
GS              they are also said when asked in other words
LS              other answers are still right; unchanged: still those of the base, right or wrong
teacher-forced  share of the target's tokens that the model predicts, each from the right ones before it"""
_GENERATED = """
generated       share of prompts whose free answer, up to its own end, is the target; contains: has it in it
new over old    share of prompts at which the target is likelier than the base's own answer"""

WIDTHS = (44, 24, 28, 28)
"""Most characters of a prompt, a target, and an answer before and after."""
_GROUPS = 8  # shown; --json has all


def print_evaluation(evaluated: Evaluated, sample: int, by: GroupBy, *, by_was_given: bool = False) -> None:
    """Everything but the notes, on stdout; `sample` facts with their answers, and the worst groups of facts."""
    report = evaluated.report
    print(f"{_what(evaluated)}\n")
    _print_answers(report, sample)
    generated = any(result.after.generated is not None for result in report.results)
    _print_scores(report, generated)
    if evaluated.drift is not None:
        from malmen_cli.evaluation.drift import FEW

        drift = evaluated.drift
        perplexity = f"{drift.before.value:.2f} -> {drift.after.value:.2f}"
        times = f"{drift.ratio.value:.4f} times [{drift.ratio.low:.4f}, {drift.ratio.high:.4f}]"
        tell(f"Perplexity of {drift.source} ({plural(drift.tokens, 'token')}): {perplexity}, {times}")
        if drift.chunks < FEW:
            print(f"  The interval is over {plural(drift.chunks, 'chunk')} of text, too few: it says little.")
    print()
    print(_LEGEND + (_GENERATED if generated else ""))
    _print_groups(report, by, by_was_given)
    before, after = (sum(n or 0 for n in scores.cut_off.values()) for scores in (report.before, report.after))
    if before or after:
        total = sum(report.asked.values())
        print(
            f"\nOf {total:,} free answers {before:,} -> {after:,} did not end within their cap (--max-new-tokens): "
            "they are no match."
        )
    others = evaluated.others
    if others is not None and others.asked:
        of_all = "" if others.asked == others.active else f", of {others.active:,}"
        scores = "-" if others.after is None else f"{percent(others.before)} -> {percent(others.after)}"
        print(f"\n{plural(others.asked, 'other active fact')} asked{of_all}: ES {scores}")


def _print_scores(report: Report, generated: bool) -> None:
    from malmen_cli.evaluation.six_scores import those_there

    measures, six = report.measures, report.six_scores
    rows = [
        _row("ES", "edit prompts", report, "edit"),
        _row("GS", "rephrases", report, "rephrase"),
        _row("LS", "unrelated prompts", report, "unrelated"),
        ("", "unchanged", "", _score(measures.unchanged.forced), _score(measures.unchanged.generated)),
    ]
    header = ("", "prompts", "asked", "teacher-forced", "generated")
    width = len(header) if generated else len(header) - 1
    print_table([row[:width] for row in rows], header=header[:width])
    print()
    if generated:
        words = (("contains", measures.contains), ("new over old", measures.new_over_old))
        rows = [
            (name, _short(by_kind["edit"]), _short(by_kind["rephrase"]), _short(by_kind.get("unrelated")))
            for name, by_kind in words
        ]
        print_table(rows, header=("", "edit prompts", "rephrases", "unrelated prompts"))
        print()
    counts = [sum(score is not None for score in (pair.forced, pair.generated)) for _, pair in six]
    *first, last = [name for name, count in zip(("ES", "GS", "unchanged"), counts, strict=True) if count]
    names = f"{', '.join(first)} and {last}" if first else last
    tell(f"Harmonic mean of {those_there(sum(counts))}, {names}: {_score(six.harmonic_mean)}")


def _print_groups(report: Report, by: GroupBy, asked: bool) -> None:
    from malmen_cli.evaluation.groups import FEWEST

    groups = report.groups(by)
    if len(groups) < 2:
        if asked:
            print(f"\nNo two groups by {by} have {FEWEST} facts or more.")
        return
    rows = []
    for group in groups[:_GROUPS]:
        pairs = [f"{_value(pair.forced)} / {_value(pair.generated)}" for _, pair in group.scores]
        rows.append((printable(group.name, 40), f"{group.facts:,}", *pairs, _value(group.scores.harmonic_mean)))
    print()
    of_all = f"The worst {_GROUPS} of {len(groups):,} groups" if len(groups) > _GROUPS else "Groups, the worst first"
    print(f"{of_all}; edited, teacher-forced / generated")
    print_table(rows, header=(by, "facts", "ES", "GS", "unchanged", "mean"))


def _what(evaluated: Evaluated) -> str:
    scored, available = len(evaluated.numbers), evaluated.available
    count = plural(scored, "fact") if scored == available else f"{scored:,} of {available:,} facts"
    seed = f" (seed {evaluated.seed})" if evaluated.sampled else ""
    model, editor = evaluated.model.name, (evaluated.editor or "")[:10]
    entry = evaluated.entry
    if entry is None:
        source = printable(evaluated.source or "-", limit=None)
        by = f"editor {editor}" if editor else str(evaluated.method)
        return f"{count} of {source}{seed}, edited in memory from the base of {model} by {by}"
    active = plural(evaluated.edited, "active fact")
    return f"{count} of #{entry.number} {entry.id[7:17]}{seed}, on {model} as it stands with {active}"


def _row(score: str, words: str, report: Report, kind: Kind) -> tuple[str, ...]:
    measures = report.measures
    forced, generated = _change(measures.teacher_forced[kind]), _change(measures.exact_match[kind])
    return score, words, f"{report.asked[kind]:,}", forced, generated


def _change(change: Change) -> str:
    return "-" if change.after is None else f"{_value(change.before)} -> {_score(change.after)}"


def _short(change: Change | None) -> str:
    """Without the interval, which --json has."""
    return "-" if change is None or change.after is None else f"{_value(change.before)} -> {_value(change.after)}"


def _score(score: Score | None) -> str:
    return "-" if score is None else f"{percent(score.value)} [{score.low:.2f}, {score.high:.2f}]"


def _value(score: Score | None) -> str:
    return percent(None if score is None else score.value)


def _print_answers(report: Report, sample: int) -> None:
    rows: list[Sequence[str]] = []
    for result in report.of_kind("edit")[:sample]:
        cells = [printable(result.prompt, WIDTHS[0]), printable(result.target, WIDTHS[1])]
        for one, width in zip((result.before, result.after), WIDTHS[2:], strict=True):
            cells.append(said(one.answer if one.generated is None else one.generated, width))
        rows.append(cells)
    if rows:
        print_table(rows, header=("prompt", "target", "base", "edited"))
        print()
