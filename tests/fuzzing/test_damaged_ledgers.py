"""R10: a database damaged by a disk or by a stranger: verbs that read fail in words, escape what they show, write
nothing, and end."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from random import Random

import pytest
from damaged_ledger import READING, DamagedLedger, damaged
from figures import Figures
from fuzz_counts import Tried
from fuzz_targets import Defect, scratch

from malmen_cli.errors import ExitCode
from malmen_cli.ledger import store

FAST, FULL = 60, 1_500


@pytest.fixture(scope="module")
def world() -> DamagedLedger:
    return DamagedLedger()


def test_the_sound_one_is_read(world: DamagedLedger) -> None:
    world.workspace.database.write_bytes(world.sound)
    for words in READING:
        assert world.run(*words) in (ExitCode.DONE, ExitCode.DIFFERS), words
    assert world(world.sound)


def test_only_malmens_own_errors_escape(world: DamagedLedger, full: bool, figures: Figures) -> None:
    tried = Tried(world)
    try:
        for seed in range(FULL if full else FAST):
            tried(damaged(Random(seed), world.sound))
    finally:
        row = tried.row()
        row["commands"] = tried.inputs * len(READING)
        figures("R10: damaged databases under the verbs that read (seeded damage)", **row)
    assert tried.accepted > 0


FOUND: dict[str, str] = {
    "an editor without settings": "UPDATE editors SET config = '{}'",
    "settings that are no table": "UPDATE editors SET config = '{\"config\": 5}'",
    "scores of one kind only": 'UPDATE editors SET scores = \'{"scores": {"1": {"ES": 1}}}\'',
    "scores by a size that is no number": 'UPDATE editors SET scores = \'{"scores": {"x": {}}}\'',
    "a time that is a blob": "UPDATE entries SET created_at = x'ff'",
    "a figure that is a text": "UPDATE parameter_deltas SET norm = 'x'",
    "an entry of no model": "UPDATE entries SET model_id = 9 WHERE number = 2",
    "a model whose folder no system has": "UPDATE models SET path = '/' || hex(zeroblob(300))",
    "a model whose name clears the screen": "UPDATE models SET name = char(27) || '[2J'",
    "an entry whose id clears the screen": "UPDATE entries SET id = char(27) || '[2J' || number",
    "a fact that is none": "UPDATE facts SET content = '{\"prompt\": 1}'",
    "a score beyond all numbers": (
        'UPDATE entries SET details = json_set(details, \'$.check\', json(\'{"before": {}, "after": {"ES": 1'
        + "0" * 400
        + '}, "checked_old": 0, "wrong": []}\'))'
    ),
    "a tensor that the model has not": "UPDATE parameter_deltas SET tensor = 'x' || tensor",
    "a split's unknown format": "UPDATE splits SET format = 'x'",
}


@pytest.mark.parametrize("found", FOUND)
def test_what_was_found_stays_mended(world: DamagedLedger, found: str) -> None:
    path = scratch() / "found.db"
    path.write_bytes(world.sound)
    with closing(sqlite3.connect(path)) as db:
        db.executescript(FOUND[found])
    data = path.read_bytes()
    assert data != world.sound
    world(data)


def test_a_careless_reader_is_noticed(world: DamagedLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without the checks of rows' types, damage comes out as errors that are none of malmen's."""
    monkeypatch.setattr(store.row_types, "checked", lambda row, types: {name: row[name] for name in types})
    with pytest.raises(Defect, match="unexpected error"):
        for seed in range(300):
            world(damaged(Random(seed), world.sound))
