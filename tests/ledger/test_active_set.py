from __future__ import annotations

from itertools import count

from hypothesis import given
from hypothesis import strategies as st
from ledger_world import fact, refs

from malmen_cli.facts import Fact
from malmen_cli.ledger import (
    NOTHING_ACTIVE,
    EntryFacts,
    FactRef,
    active_digest,
    active_facts,
    fates,
    remaining,
    reverters,
    superseded_by,
)

facts = st.builds(fact, st.sampled_from("abcdef"), st.sampled_from("xyz"))
fact_sets = st.lists(facts, min_size=1, max_size=4, unique_by=lambda fact: fact.prompt)


def applied(id: str, *given: Fact) -> EntryFacts:
    return EntryFacts(id, "apply", refs(given))


def whole_revert(id: str, entries: list[EntryFacts], target: EntryFacts) -> EntryFacts:
    left = remaining(entries)[target.id]
    return EntryFacts(id, "revert", tuple(ref for ref in target.facts if ref.fact_digest in left), target.id)


@st.composite
def ledgers(draw: st.DrawFn) -> list[EntryFacts]:
    """Applies, whole and partial reverts, reverts of reverts."""
    entries: list[EntryFacts] = []
    for id in map(str, range(draw(st.integers(0, 8)))):
        if entries and draw(st.booleans()):
            target = draw(st.sampled_from(entries))
            part = draw(st.sets(st.sampled_from(target.facts))) if target.facts else set()
            entries.append(EntryFacts(id, "revert", tuple(ref for ref in target.facts if ref in part), target.id))
        else:
            entries.append(applied(id, *draw(fact_sets)))
    return entries


def active_by_definition(entries: list[EntryFacts]) -> dict[str, FactRef]:
    """The fold of section 1 said the slow way: which facts does each entry still hold, asked entry by entry."""

    def holds(index: int, ref: FactRef) -> bool:
        entry = entries[index]
        later = [i for i in range(index + 1, len(entries)) if entries[i].target == entry.id]
        return ref in entry.facts and not any(holds(i, ref) for i in later)

    active = {}
    for index, entry in enumerate(entries):
        for ref in entry.facts if entry.kind == "apply" else ():
            if holds(index, ref):
                active[ref.prompt] = ref
    return active


@given(ledgers())
def test_what_is_taken_out_comes_back_when_those_who_take_it_out_are_reverted(entries: list[EntryFacts]) -> None:
    """Newest first, as often as somebody else is named."""
    taken, left = reverters(entries), remaining(entries)
    for entry in entries:
        digests = {ref.fact_digest for ref in entry.facts}
        assert taken[entry.id].keys() == digests - left[entry.id]
        for digest in taken[entry.id]:
            after, named = list(entries), list[str]()
            while (by := reverters(after)[entry.id].get(digest)) is not None:
                assert by not in named and next(other for other in after if other.id == by).target == entry.id
                named.append(by)
                after.append(whole_revert(f"again {len(named)}", after, next(e for e in after if e.id == by)))
            assert digest in remaining(after)[entry.id]


@given(ledgers())
def test_a_fact_is_in_effect_by_its_own_entry_or_another_while_its_edit_is_active(entries: list[EntryFacts]) -> None:
    active = active_facts(entries)
    left = remaining(entries)
    for entry in entries:
        for ref, fate in zip(entry.facts, fates(entries, entry.id, entry.facts), strict=True):
            own = ref.fact_digest in left[entry.id]
            held = active.get(ref.prompt) is not None and active[ref.prompt].edit_digest == ref.edit_digest
            if entry.kind == "apply":
                assert (fate in ("in effect", "held by another entry"), fate in ("in effect", "superseded")) == (
                    held,
                    own,
                )
            else:
                assert fate == ("in effect" if own else "reverted")


class TestFold:
    @given(ledgers())
    def test_equals_its_definition(self, entries: list[EntryFacts]) -> None:
        assert active_facts(entries) == active_by_definition(entries)

    @given(ledgers())
    def test_reverting_every_apply_leaves_nothing(self, entries: list[EntryFacts]) -> None:
        for number, target in zip(count(100), [entry for entry in entries if entry.kind == "apply"]):
            entries.append(whole_revert(str(number), entries, target))
        assert active_facts(entries) == {}
        assert active_digest("editor", active_facts(entries)) == NOTHING_ACTIVE

    @given(ledgers(), st.data())
    def test_reverting_a_revert_is_as_if_neither_had_been(self, entries: list[EntryFacts], data: st.DataObject) -> None:
        before = active_facts(entries)
        if entries:
            undo = whole_revert("undo", entries, data.draw(st.sampled_from(entries)))
            entries = [*entries, undo]
            entries.append(whole_revert("redo", entries, undo))
        assert active_facts(entries) == before

    @given(ledgers(), st.data())
    def test_reverting_an_apply_is_as_if_it_had_never_been(
        self, entries: list[EntryFacts], data: st.DataObject
    ) -> None:
        entries = [entry for entry in entries if entry.kind == "apply"]
        if entries:
            target = data.draw(st.sampled_from(entries))
            without = [entry for entry in entries if entry is not target]
            assert active_facts([*entries, whole_revert("undo", entries, target)]) == active_facts(without)

    @given(ledgers(), fact_sets, fact_sets)
    def test_entries_that_share_no_prompt_commute(
        self, entries: list[EntryFacts], a: list[Fact], b: list[Fact]
    ) -> None:
        b = [Fact(prompt=fact.prompt.upper(), target=fact.target) for fact in b]
        there = active_facts([*entries, applied("A", *a), applied("B", *b)])
        back = active_facts([*entries, applied("B", *b), applied("A", *a)])
        assert there == back
        assert active_digest("editor", there) == active_digest("editor", back)

    def test_the_last_target_wins_and_reverting_it_revives_the_earlier(self) -> None:
        old, new = fact("Paris is in", "Italy"), fact("Paris is in", "Spain")
        entries = [applied("1", old), applied("2", new)]
        assert active_facts(entries) == {"Paris is in": refs([new])[0]}
        entries.append(whole_revert("3", entries, entries[1]))
        assert active_facts(entries) == {"Paris is in": refs([old])[0]}
        entries.append(whole_revert("4", entries, entries[2]))
        assert active_facts(entries) == {"Paris is in": refs([new])[0]}

    def test_reverting_the_superseded_changes_nothing_now(self) -> None:
        old, new = fact("Paris is in", "Italy"), fact("Paris is in", "Spain")
        entries = [applied("1", old), applied("2", new)]
        entries.append(whole_revert("3", entries, entries[0]))
        assert active_facts(entries) == {"Paris is in": refs([new])[0]}
        entries.append(whole_revert("4", entries, entries[1]))
        assert active_facts(entries) == {}

    def test_one_fact_of_two_entries_stays_until_both_are_reverted(self) -> None:
        same = fact("Paris is in", "Italy")
        entries = [applied("1", same), applied("2", same)]
        entries.append(whole_revert("3", entries, entries[0]))
        assert len(active_facts(entries)) == 1
        entries.append(whole_revert("4", entries, entries[1]))
        assert active_facts(entries) == {}


class TestActiveDigest:
    @given(ledgers())
    def test_names_the_set_and_the_editor(self, entries: list[EntryFacts]) -> None:
        active = active_facts(entries)
        shuffled = dict(reversed(active.items()))
        assert active_digest("one", active) == active_digest("one", shuffled)
        assert (active_digest("one", active) == active_digest("other", active)) == (not active)

    def test_ignores_what_the_rows_do_not_depend_on(self) -> None:
        plain, tagged = fact("Paris is in"), Fact(prompt="Paris is in", target="yes", tags=("geography",))
        assert plain.digest != tagged.digest
        digests = {active_digest("one", active_facts([applied("1", given)])) for given in (plain, tagged)}
        assert len(digests) == 1


def test_additions_are_sorted_by_what_they_do() -> None:
    known, old, new, fresh = fact("a", "x"), fact("b", "x"), fact("b", "y"), fact("c", "x")
    additions = superseded_by(refs([known, new, fresh]), active_facts([applied("1", known, old)]))
    assert additions.new == refs([fresh])
    assert additions.already_active == refs([known])
    assert additions.superseding == ((refs([new])[0], refs([old])[0]),)
