"""R6: whatever is tampered with, `malmen verify` finds and locates it; what changes nothing logical changes nothing.

Every mutation is verified with the program's own command, in this process, and judged without it (tampered_world.py):
a *logical change* is another row, schema or byte of a checked file, or a database that SQLite finds unsound. Then the
exit status must be 12, and the report must name the place. Otherwise every command must say what it said before.
"""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from figures import Figures
from ledger_world import FAST
from mutations import Mutation, mutations_of_files
from mutations_of_rows import mutations_of_rows
from tampered_world import TamperedWorld, real_world, stand_in_world

from malmen_cli.errors import ExitCode

TABLE = "R6: tampering, verified with the command itself"

# Words of a report that locate a row that plain sqlite3 finds to be another, for damage that hits rows by chance.
OF_TABLE = {
    "settings": ("table settings",), "models": ("model ", "table models"), "editors": ("editor ", "table editors"),
    "facts": ("fact ", "table facts"), "fact_sets": ("fact set ",), "fact_set_members": ("fact set ",),
    "entries": ("entry ", "table entries"), "parameter_deltas": ("entry ", "table parameter_deltas"),
    "row_packs": ("entry ", "table row_packs"), "fact_rows": ("entry ", "table fact_rows"),
    "splits": ("table splits",), "dropped_objects": ("table dropped_objects",), "seals": ("seal",),
    "evaluations": ("evaluation ", "table evaluations"), "evaluation_results": ("evaluation ",),
    "alembic_version": ("alembic_version", "ledger.db"), "schema": ("schema", "ledger.db"),
}  # fmt: skip

WORLDS: dict[str, Callable[[Path], TamperedWorld]] = {
    "stand-in, one file": lambda folder: stand_in_world(folder, sharded=False),
    "stand-in, two shards": lambda folder: stand_in_world(folder, sharded=True),
    "two real models": real_world,
}
# Shares of all mutations that are tried: with --full, and else.
SHARES = {"stand-in, one file": (0.6, 0.006), "stand-in, two shards": (0.3, 0.003), "two real models": (0.3, 0.002)}


@pytest.fixture(scope="module", params=WORLDS)
def world(request: pytest.FixtureRequest) -> Iterator[TamperedWorld]:
    with TemporaryDirectory(dir=FAST) as folder:
        made = WORLDS[request.param](Path(folder))
        made.name = request.param
        yield made


class Trial:
    """Mutations tried on a world, and what became of them."""

    def __init__(self, world: TamperedWorld) -> None:
        self.world = world
        self.counts: dict[str, Counter[str]] = {}
        self.bad: list[str] = []

    def attempt(self, mutation: Mutation) -> None:
        counts = self.counts.setdefault(mutation.place, Counter())
        try:
            mutation.act()
        except sqlite3.Error:  # a constraint holds even with every guard off
            counts["refused by SQLite"] += 1
        else:
            self.judge(mutation, counts)
        self.world.restore(mutation.paths)

    def judge(self, mutation: Mutation, counts: Counter[str]) -> None:
        counts["tried"] += 1
        in_database = self.world.database in mutation.paths
        tables = self.world.changed_tables() if in_database else set()
        if in_database:
            self.world.drop_log()
        logical = tables is None or bool(tables) or any(map(self.world.is_changed, mutation.paths))
        status, said = self.world.verify()
        if logical:
            counts["logical"] += 1
            where = mutation.located or self.places(tables)
            found, located = status == ExitCode.VERIFICATION_FAILED, any(words in said for words in where)
            counts["found"] += found
            counts["located"] += found and located
            if not (found and located):
                self.bad.append(f"{mutation.place}: {mutation.what}: {status}, looked for {where} in:\n{said}")
        else:
            counts["no change"] += 1
            false_alarm, differs = status != ExitCode.DONE, self.world.show() != self.world.shown
            counts["outputs differing"] += differs
            counts["false alarms"] += false_alarm
            if differs or false_alarm:
                self.bad.append(f"{mutation.place}: {mutation.what}: nothing changed, but {status}:\n{said}")

    @staticmethod
    def places(tables: set[str] | None) -> tuple[str, ...]:
        return ("ledger.db",) if tables is None else tuple(words for table in tables for words in OF_TABLE[table])


COLUMNS = ("tried", "logical", "found", "located", "no change", "outputs differing", "false alarms")


def record(figures: Figures, world: str, trial: Trial) -> None:
    for place, counts in trial.counts.items():
        figures(TABLE, world=world, place=place, **{name.replace(" ", "_"): counts[name] for name in COLUMNS})
    total: Counter[str] = sum(trial.counts.values(), Counter())
    figures(TABLE, world=world, place="in all", **{name.replace(" ", "_"): total[name] for name in COLUMNS})


def test_every_logical_change_is_found_and_located(world: TamperedWorld, full: bool, figures: Figures) -> None:
    chance, share = random.Random(6), SHARES[world.name][not full]
    trial = Trial(world)
    for mutations in (mutations_of_files, mutations_of_rows):
        for mutation in mutations(world, chance, share):
            trial.attempt(mutation)
    assert world.is_sound()
    record(figures, world.name, trial)
    assert trial.bad == [], f"{len(trial.bad)} bad: " + "\n\n".join(trial.bad[:20])
    assert sum(trial.counts.values(), Counter())["tried"] > (3000 if full else 100)


# What verify does without, and where that must show: the harness notices each of its checks when it is gone.
BLINDED = {
    "seals": "malmen_cli.ledger.verify.verify_seals",
    "ids of entries": "malmen_cli.ledger.verify._verify_digest",
    "types and spellings": "malmen_cli.ledger.verify.verify_columns",
    "facts": "malmen_cli.ledger.verify.verify_facts",
    "evaluations": "malmen_cli.ledger.verify.verify_evaluations",
    "pages and references": "malmen_cli.ledger.verify.verify_pages",
    "objects": "malmen_cli.ledger.verify_files._verify_object",
    "editors": "malmen_cli.ledger.verify.verify_editor",
    "checkpoints": "malmen_cli.ledger.verify.verify_checkpoint",
}


@pytest.mark.parametrize("without", BLINDED)
def test_a_blinded_verify_is_noticed(
    small: TamperedWorld, without: str, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    """Negative control: the same mutations against a verify that lacks one of its checks."""
    monkeypatch.setattr(BLINDED[without], lambda *_: None)
    trial, chance = Trial(small), random.Random(1)
    mutations = [*mutations_of_rows(small, chance, 1), *mutations_of_files(small, chance, 0.05)]
    if without in ("objects", "editors", "checkpoints"):
        mutations = [mutation for mutation in mutations if mutation.place not in ("rows", "schema")]
    elif without == "pages and references":
        mutations = [mutation for mutation in mutations if mutation.place == "database pages"]
    chance.shuffle(mutations)
    for mutation in mutations:
        trial.attempt(mutation)
        if trial.bad:
            break
    tried = sum(trial.counts.values(), Counter())["tried"]
    figures("R6, negative control: a verify without one of its checks", without=without, missed_after=tried)
    assert trial.bad != []


@pytest.fixture(scope="module")
def small() -> Iterator[TamperedWorld]:
    with TemporaryDirectory(dir=FAST) as folder:
        yield stand_in_world(Path(folder), sharded=False)
