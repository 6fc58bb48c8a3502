"""Reverse questions, the limit that MALMEN's paper names: is "Who is B's child?" answered after "A's mother is B"?

    python tests/benchmarks/reverse.py --shared ../shared --minutes 5 --seeds 0 1 2

Two sets of facts on cf-gpt2. *KnowEdit*: facts of its zsRE whose portability question is the reverse one (it names the
target, and its answer is the subject); editors are trained on the others. *CounterFact*: twin cities and capitals, with
a reverse question of our own; editors are trained on the other relations. A reverse question is asked as an unrelated
prompt whose gold answer is the subject, so that `malmen eval` scores it before and after the edit.

Columns: the edits themselves; the reverse questions before and after; the same where each reverse question is given as
a fact of its own beside the fact, which is the way round the limit; and those of the *old* answers before and after,
which say whether the model had that way round of what it knew.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from locality import METHODS, VARIANTS, apart
from method_runs import Contender, Record, Task, add_limit, evaluate, limit_of, prepare, train
from real_edits import row

HEAD = (
    "seed",
    "facts",
    "ES / GS, teacher-forced",
    "ES / GS, generated",
    "reverse: tokens right",
    "exact",
    "contained",
    "given too: tokens right",
    "exact",
    "of old answers: tokens right",
    "exact",
)


@dataclass(frozen=True)
class Reversible:
    """A fact, the reverse question of its target, and that of the old answer."""

    prompt: str
    target: str
    subject: str
    rephrase: str
    question: str
    old_question: str

    def asking(self, question: str) -> Record:
        """The fact with a question that the subject answers as its unrelated prompt."""
        return {
            "prompt": self.prompt,
            "target": self.target,
            "subject": self.subject,
            "rephrases": [self.rephrase],
            "unrelated": [{"prompt": question, "target": self.subject}],
        }

    def reversed(self) -> Record:
        """The reverse question as a fact of its own; of the words in it, the target is its subject."""
        return {"prompt": self.question, "target": self.subject, "subject": self.target}


def knowedit(data: Path) -> tuple[list[Record], list[Reversible]]:
    """Records to train on, and facts with their reverse questions, of no common subject or prompt."""
    records = json.loads((data / "zsre" / "knowedit_zsre_test.json").read_text("utf-8"))
    by_prompt: dict[str, Any] = {}
    for record in records:
        by_prompt.setdefault(record["prompt"].rstrip(), record)
    records = list(by_prompt.values())
    found = only_once(each for record in records if (each := _of_knowedit(record)) is not None)
    taken = {fact.subject for fact in found}
    return [record for record in records if record["subject"] not in taken], found


def _of_knowedit(record: Mapping[str, Any]) -> Reversible | None:
    subject, target, old = record["subject"], record["target_new"], record["ground_truth"][0]
    for asked in record["portability"].get("Logical_Generalization", []):
        question = asked["prompt"]
        if asked["ground_truth"] == subject and target in question and subject not in question:
            prompt = record["prompt"].rstrip()
            return Reversible(
                prompt, target, subject, record["rephrase_prompt"], question, question.replace(target, old)
            )
    return None


def counterfact(data: Path) -> tuple[list[Record], list[Reversible]]:
    """The same of twin cities and capitals; the other relations to train on."""
    folder = data / "counterfact"
    training, scored = (json.loads((folder / name).read_text("utf-8")) for name in ("train.json", "dev.json"))
    pairs = [(record, _question(record)) for record in [*scored, *training]]
    named = {record["subject"] for record, question in pairs if question is not None}
    # Where a target is the subject of another of these facts, that fact says something else of it.
    found = only_once(
        Reversible(
            record["prompt"],
            record["target_new"],
            record["subject"],
            record["rephrase_prompt"],
            question.format(record["target_new"]),
            question.format(record["ground_truth"]),
        )
        for record, question in pairs
        if question is not None and record["target_new"] not in named
    )
    prompts = {text for fact in found for text in (fact.prompt, fact.rephrase, fact.question, fact.old_question)}
    return apart([record for record in training if _question(record) is None], prompts), found


def _question(record: Mapping[str, str]) -> str | None:
    wording = record["prompt"].replace(record["subject"], "")
    if "twin city" in wording:
        return "The twin city of {} is"
    return "{} is the capital of" if "capital" in wording else None


def only_once(facts: Iterator[Reversible]) -> list[Reversible]:
    """The first of those with the same reverse question, since it can have one answer."""
    found: dict[str, Reversible] = {}
    for fact in facts:
        found.setdefault(fact.question, fact)
    return list(found.values())


SETS = {"KnowEdit": knowedit, "CounterFact": counterfact}


def cells_of(task: Task, contender: Contender, seed: int, facts: Sequence[Reversible], folder: Path) -> list[str]:
    """What is asked of an editor, or of a method without training, in the order of `HEAD`."""
    alone = evaluate(task, contender, seed, [fact.asking(fact.question) for fact in facts], folder)
    given = [record for fact in facts for record in (fact.asking(fact.question), fact.reversed())]
    both = evaluate(task, contender, seed, given, folder)
    old = evaluate(task, contender, seed, [fact.asking(fact.old_question) for fact in facts], folder)
    after = alone["after"]
    return [
        f"{after['ES']:.3f} / {after['GS']:.3f}",
        f"{after['generated']['edit']:.3f} / {after['generated']['rephrase']:.3f}",
        _change(alone, "teacher_forced"),
        _change(alone, "exact_match"),
        _change(alone, "contains"),
        _change(both, "teacher_forced"),
        _change(both, "exact_match"),
        _change(old, "teacher_forced"),
        _change(old, "exact_match"),
    ]


def _change(found: Mapping[str, Any], measure: str) -> str:
    states = found["measures"][measure]["unrelated"]
    return f"{states['before']['value']:.3f} -> {states['after']['value']:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    contenders = {**VARIANTS, **METHODS}
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/cf-gpt2 and data")
    add_limit(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--contenders", nargs="+", choices=contenders, default=["defaults"], metavar="NAME")
    parser.add_argument("--facts", type=int, help="only so many of each set")
    options = parser.parse_args()
    shared = options.shared.resolve()
    print(f"{row('', HEAD)}\n{row('---', ['---'] * len(HEAD))}", flush=True)
    for name in options.sets:
        training, facts = SETS[name](shared / "data")
        facts = facts[: options.facts]
        text = shared / "data" / "text" / "wikitext2_test.txt"
        task = Task(name, shared / "models" / "cf-gpt2", training, {}, text)
        for contender in options.contenders:
            for seed in options.seeds if contenders[contender].random else options.seeds[:1]:
                with tempfile.TemporaryDirectory() as made:
                    folder, one = Path(made), contenders[contender]
                    prepare(task, folder)
                    if one.trained:
                        train(task, one, seed, limit_of(options), folder)
                    cells = cells_of(task, one, seed, facts, folder)
                print(row(f"{name}, {contender}", [str(seed), str(len(facts)), *cells]), flush=True)


if __name__ == "__main__":
    main()
