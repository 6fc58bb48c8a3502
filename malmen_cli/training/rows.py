"""Training rows: each fact's edit, equivalent and unrelated prompts as tokens, split by subject."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from malmen_cli.errors import UsageError
from malmen_cli.facts import Fact
from malmen_cli.facts.lending import lend_unrelated
from malmen_cli.language_models.texts import Tokens
from malmen_cli.language_models.tokenizing import Tokenizing


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One fact as tokens. `equivalent` holds its rephrases with the target, or the edit itself where it has none.

    `lent`: the unrelated prompts are other facts', with the targets that those are to get.
    """

    edit: Tokens
    equivalent: tuple[Tokens, ...]
    unrelated: tuple[Tokens, ...]
    lent: bool = False


@dataclass(frozen=True)
class Split:
    """Rows to train on and rows held out, with no subject in both.

    Attributes:
        dropped: rephrases and unrelated prompts that do not fit the model. trained: the facts of the rows to train on,
            with what they were lent. left_out: facts that do not fit the model.
    """

    train: list[TrainingRow]
    held_out: list[TrainingRow]
    dropped: int
    trained: Sequence[Fact] = ()
    left_out: Sequence[Fact] = ()


def split_rows(facts: Sequence[Fact], tokenizing: Tokenizing, *, share: float, largest: int, seed: int) -> Split:
    """Tokenise facts and hold out whole subjects (`_by_subject`) until `share` of rows is reached.

    A fact without unrelated prompts is lent one by a fact of the training rows. A subject that would take more than
    twice what is wanted is trained on, unless there are only such: then the smallest is held out.

    Raises:
        UsageError: fewer than two subjects, so that nothing can be held out, or no fact that the model has room for, or
            but one fact to train on: one row has no moments.
    """
    edits = [tokenizing.fits(fact.prompt, fact.target) for fact in facts]
    fitting = {(fact.prompt, fact.target): edit for fact, edit in zip(facts, edits, strict=True) if edit is not None}
    if facts and not fitting:
        raise tokenizing.nothing_fits(facts[0].prompt, facts[0].target)
    left_out = [fact for fact in facts if (fact.prompt, fact.target) not in fitting]
    but = f", and {len(left_out):,} of {len(facts):,} do not fit the model" if left_out else ""
    groups = _by_subject([fact for fact in facts if (fact.prompt, fact.target) in fitting])
    if len(groups) < 2:
        raise UsageError(f"an editor needs facts of at least two subjects{but}", remedy="Train on a larger fact file.")
    subjects = sorted(groups)
    random.Random(seed).shuffle(subjects)
    fitting_facts = len(facts) - len(left_out)
    wanted = min(largest, max(1, round(share * fitting_facts)))
    apart: dict[str, list[Fact]] = {}
    count = 0
    for subject in reversed(subjects):
        if count < wanted and count + len(groups[subject]) <= 2 * wanted:
            apart[subject] = groups[subject]
            count += len(groups[subject])
    while len(apart) > 1 and fitting_facts - count < 2:
        count -= len(apart.popitem()[1])
    if not apart or fitting_facts - count < 2:
        smallest = min(subjects, key=lambda subject: len(groups[subject]))
        apart = {smallest: groups[smallest]}
    held_out = [fact for group in apart.values() for fact in group]
    kept = [fact for subject in subjects if subject not in apart for fact in groups[subject]]
    if len(kept) < 2:
        raise UsageError(
            f"an editor needs two facts to train on, beside those held out{but}", remedy="Train on a larger fact file."
        )
    trained = lend_unrelated(kept, kept, seed)
    train, dropped = _tokenise(kept, trained, fitting, tokenizing)
    validation, dropped_too = _tokenise(held_out, lend_unrelated(held_out, kept, seed), fitting, tokenizing)
    return Split(train, validation, dropped + dropped_too, trained, left_out)


def _by_subject(facts: Sequence[Fact]) -> dict[str, list[Fact]]:
    """Facts that share a subject, a prompt or a rephrase, but for case and white space: one side of a split would learn
    what the other is asked. By the first one's subject, or its prompt where it names none."""
    above: dict[str, str] = {}  # a forest over subjects, prompts and rephrases

    def root(name: str) -> str:
        while above.setdefault(name, name) != name:
            above[name] = name = above[above[name]]
        return name

    for fact in facts:
        for name in (fact.subject, *fact.rephrases):
            if name:
                above[root(_plain(name))] = root(_plain(fact.prompt))
    groups: dict[str, list[Fact]] = {}
    for fact in facts:
        groups.setdefault(root(_plain(fact.prompt)), []).append(fact)
    return {group[0].subject or group[0].prompt: group for group in groups.values()}


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _tokenise(
    own: Iterable[Fact], facts: Iterable[Fact], edits: Mapping[tuple[str, str], Tokens], tokenizing: Tokenizing
) -> tuple[list[TrainingRow], int]:
    """Rows of facts, with what they were lent (`facts`) and without (`own`), and how many prompts have no room.

    Args:
        edits: by prompt and target, the facts' own prompts, which have.
    """
    rows, dropped = [], 0
    for before, fact in zip(own, facts, strict=True):
        edit = edits[fact.prompt, fact.target]
        equivalent = [tokenizing.fits(prompt, fact.target) for prompt in fact.rephrases]
        unrelated = [tokenizing.fits(other.prompt, other.target) for other in fact.unrelated]
        dropped += equivalent.count(None) + unrelated.count(None)
        rows.append(
            TrainingRow(
                edit=edit,
                equivalent=tuple(t for t in equivalent if t is not None) or (edit,),
                unrelated=tuple(t for t in unrelated if t is not None),
                lent=len(fact.unrelated) > len(before.unrelated),
            )
        )
    return rows, dropped
