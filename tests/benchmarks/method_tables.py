"""The tables of a comparison of editing methods, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import harmonic_mean, mean, stdev
from typing import Any

from real_edits import row

SIX = ("ES", "GS", "LS", "ES generated", "GS generated", "LS generated")
MEAN = "harmonic mean"


def six_scores(draws: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Each of the six scores, its mean over draws of one size, and the harmonic mean of these; what none has is 0."""
    found = {}
    for way, suffix in (("teacher_forced", ""), ("generated", " generated")):
        for short, subject in (("ES", "reliability"), ("GS", "generalisation"), ("LS", "locality")):
            values = [draw["six_scores"][subject][way] for draw in draws]
            found[short + suffix] = mean(value["value"] if value is not None else 0.0 for value in values)
    return found | {MEAN: harmonic_mean(list(found.values()))}


def heading(sizes: Sequence[int]) -> str:
    scores = [f"{size:,}: {of}" for size in sizes for of in ("teacher-forced", "generated", MEAN)]
    cells = ["seed", "steps", "facts trained on", "train: wall s", "processor s", *scores]
    return f"{row('', cells)}\n{row('---', ['---'] * len(cells))}"


def line(name: str, seed: int, outcome: Mapping[str, Any], sizes: Sequence[int]) -> str:
    trained = outcome["trained"]
    cells = [str(seed)]
    if trained is None:
        cells += ["", "", "", ""]
    else:
        seconds = trained["seconds"]
        cells += [str(trained["steps"]), f"{trained['facts_seen']:,}"]
        cells += [f"{seconds['wall']:.0f}", f"{seconds['processor']:.0f}"]
    for size in sizes:
        scores = six_scores(outcome["draws"][str(size)])
        for names in (SIX[:3], SIX[3:], (MEAN,)):
            cells.append(" / ".join(f"{scores[each]:.3f}" for each in names))
    return row(name, cells)


def means(found: Mapping[tuple[str, int], Mapping[str, Any]], names: Sequence[str], size: int, draws: int) -> str:
    """Means over seeds with their standard deviation, the best harmonic mean first."""
    lines = []
    for name in names:
        seeds = [six_scores(one["draws"][str(size)]) for (of, _), one in found.items() if of == name]
        if seeds:
            cells = [_spread([scores[each] for scores in seeds]) for each in (*SIX, MEAN)]
            lines.append((mean(scores[MEAN] for scores in seeds), row(name, [str(len(seeds)), *cells])))
    lines.sort(key=lambda line: -line[0])
    title = f"{size:,} facts, {draws} draw{'' if draws == 1 else 's'}"
    head = [row(title, ["seeds", *SIX, MEAN]), row("---", ["---"] * 8)]
    return "\n".join([*head, *(line for _, line in lines)])


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def before_any_edit(found: Mapping[tuple[str, int], Mapping[str, Any]], sizes: Sequence[int]) -> str:
    """What the model says before any edit, as the first run asked: where ends are supervised they are asked too."""
    if not found:
        return "Nothing was run."
    (name, _), first = next(iter(found.items()))
    said = []
    for size in sizes:
        draws = first["draws"][str(size)]
        forced = [mean(draw["before"][kind] or 0.0 for draw in draws) for kind in SIX[:3]]
        free = [
            mean(draw["before"]["generated"][of] or 0.0 for draw in draws) for of in ("edit", "rephrase", "unrelated")
        ]
        cells = (" / ".join(f"{value:.3f}" for value in values) for values in (forced, free))
        endless = sum(draw["before"]["cut_off"]["unrelated"] or 0 for draw in draws)
        asked = sum(draw["asked"]["unrelated"] for draw in draws)
        said.append(f"{size:,} facts {', '.join(cells)}, {endless:,} of {asked:,} unrelated answers without an end")
    return f"Before any edit, as {name} is asked (teacher-forced, generated; LS against the gold answer): " + "; ".join(
        said
    )
