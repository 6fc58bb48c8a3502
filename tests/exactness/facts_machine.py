"""Any sequence of what a ledger can be told leaves what its active facts alone would have left: a machine that tries.

The machine draws applies (of few prompts, so that facts are superseded and revived all the time), reverts of entries,
of single facts and of reverts, rebases, applies cut off before or after their shards were written, and gc of
everything. What should be in force it defines by itself, with nothing of malmen's own fold.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from unittest.mock import patch

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from ledger_world import FAST
from safetensors_folders import file_digests
from tiny_models import TINY_TRAINING, Family, World, fact_set, make_fact, make_facts, make_world

from malmen_cli.checkpoint.digests import digest_bytes
from malmen_cli.checkpoint.safetensors_file import read_tensor
from malmen_cli.errors import UsageError
from malmen_cli.facts import Fact
from malmen_cli.ledger import SCOPES, Workspace, collect, collectable, store, transactions, verify_ledger, writing
from malmen_cli.operations.active import active_now
from malmen_cli.operations.rebase import rebase
from malmen_cli.operations.rebuilding import rebuild
from malmen_cli.operations.train import train_editor
from malmen_cli.operations.workbench import Workbench

PROMPTS = 5
FACTS = st.builds(make_fact, st.integers(0, PROMPTS - 1), st.sampled_from(["Paris", "Rome", "Ouagadougou"]))
SOME_FACTS = st.lists(FACTS, min_size=1, max_size=3, unique_by=lambda fact: fact.prompt)


class Killed(BaseException):
    """In place of a SIGKILL: nothing of the command runs on but the kernel's release of its lock."""


@dataclass(eq=False)  # two lines may say the same and still be two
class Line:
    """A line of the model ledger: an apply's facts, or the facts that a revert takes out of an earlier line."""

    facts: list[Fact]
    target: Line | None = None


class FactsMachine(RuleBasedStateMachine):
    """`self.lines` is the whole model: what is active is defined from it anew each time, by recursion."""

    family: ClassVar[Family]
    dtype: ClassVar[str]
    sharded: ClassVar[bool]
    home: ClassVar[Path]
    tally: ClassVar[Counter[str]]

    @classmethod
    def prepare(cls, family: Family, dtype: str, sharded: bool) -> type[FactsMachine]:
        """A machine of one kind of checkpoint. Its world has an editor of all layers and one of the last."""
        home = Path(tempfile.mkdtemp(prefix="malmen-exact-", dir=FAST))
        world = make_world(home / "now", family, dtype=dtype, sharded=sharded)
        with world.ledger() as (ledger, model):
            other = TINY_TRAINING.model_copy(update={"seed": 1})
            last = [model.architecture["layers"][-1]["name"]]
            train_editor(ledger, model, fact_set(make_facts(24, start=4000)), other, layers=last)
        shutil.copytree(home / "now", home / "pristine")
        kind = {"family": family, "dtype": dtype, "sharded": sharded, "home": home, "tally": Counter()}
        return type(f"{family}-{dtype}-{'shards' if sharded else 'one file'}", (cls,), kind)

    @classmethod
    def clear(cls) -> None:
        shutil.rmtree(cls.home)

    @initialize()
    def start(self) -> None:
        shutil.rmtree(self.home / "now")
        shutil.copytree(self.home / "pristine", self.home / "now")
        self.world = World(Workspace(self.home / "now" / ".malmen"), self.home / "now" / "model")
        self.files = file_digests(self.world.checkpoint)
        self.lines: list[Line] = []
        self.seen: dict[tuple[object, ...], dict[str, str]] = {}
        self.tally["sequences"] += 1

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self.every_prefix_can_be_rebuilt()
        for line in list(self.lines):
            if line.target is None and not self.all_out(line, line.facts):
                self.revert(line, [])
        self.compare(file_digests(self.world.checkpoint), self.files)
        with self.world.ledger() as (ledger, _):
            assert verify_ledger(ledger).problems == []

    def compare(self, found: dict[str, str], wanted: dict[str, str]) -> None:
        """A restored checkpoint, file by file."""
        self.tally["restored"] += 1
        self.tally["files differing"] += sum(found.get(name) != wanted.get(name) for name in found.keys() | wanted)
        assert found == wanted

    # The model: nothing of malmen's own fold in it --------------------------------------------------------------------

    def is_out(self, line: Line, fact: Fact) -> bool:
        """A fact is out of a line when some revert of that line took it and is not itself taken back."""
        return any(r.target is line and fact in r.facts and not self.is_out(r, fact) for r in self.lines)

    def all_out(self, line: Line, facts: Sequence[Fact]) -> bool:
        return all(self.is_out(line, fact) for fact in facts)

    def active(self) -> dict[str, str]:
        """Prompt -> target: the last apply's word that is not out."""
        said: dict[str, str] = {}
        for line in self.lines:
            said |= {f.prompt: f.target for f in line.facts if line.target is None and not self.is_out(line, f)}
        return said

    # The rules --------------------------------------------------------------------------------------------------------

    @rule(facts=SOME_FACTS)
    def apply(self, facts: list[Fact]) -> None:
        before = self.active()
        applied = self.world.apply(*facts)
        superseding = {fact.prompt for _, fact in applied.proposal.additions.superseding}
        assert superseding == {fact.prompt for fact in facts if before.get(fact.prompt, fact.target) != fact.target}
        assert (applied.entry is None) == all(before.get(fact.prompt) == fact.target for fact in facts)
        self.tally["superseded"] += len(superseding)
        if applied.entry is not None:
            self.lines.append(Line(facts))

    @rule(facts=SOME_FACTS, written=st.booleans())
    def apply_cut_off(self, facts: list[Fact], written: bool) -> None:
        """An apply that dies before or after its shards are written, and the next writing command that settles it."""
        before, write = self.active(), transactions.write_changes

        def cut_off(*arguments: object, **options: object) -> None:
            if written:
                write(*arguments, **options)  # type: ignore[arg-type]
            raise Killed

        if all(before.get(fact.prompt) == fact.target for fact in facts):
            return
        with patch.object(transactions, "write_changes", cut_off), pytest.raises(Killed):
            self.world.apply(*facts)
        with self.world.ledger() as (ledger, model), writing(ledger, model, "the next command") as settlement:
            assert settlement is not None
            assert settlement.outcome == ("completed" if written else "withdrawn")
        self.tally["cut off"] += 1
        if written:
            self.lines.append(Line(facts))

    @rule(data=st.data())
    def rebase(self, data: st.DataObject) -> None:
        before = self.active()
        with self.world.ledger() as (ledger, model):
            with ledger.read() as db:
                editors = [editor.id for editor in store.editors(db, model.id)]
            done = rebase(ledger, model, data.draw(st.sampled_from(editors)), "malmen rebase", sample=0)
        assert done.active == len(before)
        if done.entry is not None:
            self.tally["rebased"] += 1
            self.lines.append(Line([]))  # a line of the ledger that says nothing of facts

    @precondition(lambda self: any(line.facts for line in self.lines))
    @rule(data=st.data())
    def revert_any_entry(self, data: st.DataObject) -> None:
        self.revert(data.draw(st.sampled_from([line for line in self.lines if line.facts])), [])

    @precondition(lambda self: any(line.facts for line in self.lines))
    @rule(data=st.data())
    def revert_one_fact(self, data: st.DataObject) -> None:
        line = data.draw(st.sampled_from([line for line in self.lines if line.facts]))
        self.revert(line, [data.draw(st.integers(1, len(line.facts)))])

    @precondition(lambda self: any(line.target for line in self.lines))
    @rule(data=st.data())
    def revert_a_revert(self, data: st.DataObject) -> None:
        self.revert(data.draw(st.sampled_from([line for line in self.lines if line.target])), [])

    def revert(self, line: Line, numbers: list[int]) -> None:
        name = f"#{self.lines.index(line) + 2}"  # the register entry is #1
        chosen = [line.facts[number - 1] for number in numbers] or line.facts
        if self.all_out(line, chosen):
            with pytest.raises(UsageError, match="reverted already"):
                self.world.revert(name, *numbers)
            return
        before = self.active()
        reverted = self.world.revert(name, *numbers)
        self.lines.append(Line(chosen, line))
        after = self.active()
        assert {f.prompt for f in reverted.removed} == {p for p in before if before[p] != after.get(p)}
        assert {f.prompt for f in reverted.revived} == {p for p in after if after[p] != before.get(p)}
        self.tally["reverted"] += 1
        self.tally["revived"] += len(reverted.revived)

    @rule()
    def gc(self) -> None:
        with self.world.ledger() as (ledger, _):
            self.tally["dropped by gc"] += len(collect(ledger, collectable(ledger, SCOPES), "malmen gc"))

    @rule()
    def every_prefix_can_be_rebuilt(self) -> None:
        """The state after every entry, from the base and the objects, whatever gc has dropped."""
        with self.world.ledger() as (ledger, model):
            with ledger.read() as db:
                entries = [entry for entry in store.entries(db, model.id) if entry.kind != "register"]
                wanted = {entry.id: store.state(db, model.id, entry.number) for entry in entries}
            for entry in entries:
                rebuilt = rebuild(ledger, model, entry)
                assert {tensor: digest_bytes(data) for tensor, data in rebuilt.items()} == wanted[entry.id]
            self.tally["prefixes rebuilt"] += len(entries)

    # What always holds ------------------------------------------------------------------------------------------------

    @invariant()
    def the_checkpoint_is_what_the_active_facts_alone_give(self) -> None:
        self.tally["steps"] += 1
        files = file_digests(self.world.checkpoint)
        with self.world.ledger() as (ledger, model):
            with ledger.read() as db:
                now = active_now(db, model)
            wanted = {edit_digest_of(prompt, target) for prompt, target in self.active().items()}
            assert {fact.edit_digest for fact in now.facts.values()} == wanted
            if now.editor_id is None:
                self.compare(files, self.files)
            else:
                with ledger.read() as db:
                    editor = store.editor(db, now.editor_id)
                bench = Workbench(ledger, model, editor, now.facts)
                assert not any(map(bench.lacks_rows, bench.edits))
                changes = bench.solve().changes
                assert changes
                for change in changes:
                    file = model.path / model.manifest.tensors[change.name].file
                    assert read_tensor(file, model.manifest.slot(change.name)) == change.data
                # No layer that only another editor edits, and no other weight.
                for name in model.manifest.tensors.keys() - {change.name for change in changes}:
                    record, slot = model.manifest.tensors[name], model.manifest.slot(name)
                    assert digest_bytes(read_tensor(model.path / record.file, slot)) == record.digest
                key = (now.editor_id, *sorted(wanted))
                if key in self.seen:  # these very facts were in force before, however they came and went
                    self.compare(files, self.seen[key])
                self.seen[key] = files
            assert verify_ledger(ledger).problems == []


def edit_digest_of(prompt: str, target: str) -> str:
    """The edit digest of the machine's fact with this prompt and target."""
    facts = (make_fact(index, target) for index in range(PROMPTS))
    return next(fact for fact in facts if fact.prompt == prompt).edit_digest
