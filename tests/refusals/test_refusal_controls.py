"""That the harness can fail: in an untouched world every command succeeds, writes, and the picture shows it."""

from __future__ import annotations

import os

import pytest
from refusal_world import COMMANDS, EVALUATING, READING, RefusalWorld, differing_bytes, flip, picture, run_program

from malmen_cli.errors import ExitCode

FINE = (ExitCode.DONE, ExitCode.FACTS_FAILED_CHECK)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_succeeds_in_an_untouched_world(
    world: RefusalWorld, command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = picture(world.home)
    status = run_program(world.arguments(command))
    assert status in FINE, capfd.readouterr().err
    changed, size = differing_bytes(before, picture(world.home))
    if command in READING or command == "recover":
        assert (changed, size) == ([], 0)
    elif command in EVALUATING:
        assert changed == [".malmen/ledger.db"]
    else:
        assert changed


@pytest.mark.parametrize(
    "change",
    [
        lambda home: flip(home / "model" / "config.json", 3),
        lambda home: (home / "model" / "config.json").chmod(0o600),
        lambda home: (home / "model" / ".malmen.lock").touch(),
        lambda home: (home / ".malmen" / "objects" / "empty").mkdir(),
        lambda home: os.utime(home / "model" / "config.json", (1, 1)),
        lambda home: (home / "nobodys-business" / "diary.txt").unlink(),
        lambda home: next((home / "cache").rglob("config.json")).unlink(),
    ],
    ids=["a bit", "a mode", "an empty file", "an empty folder", "a time", "a file gone", "a link gone"],
)
def test_a_picture_shows_every_change(world: RefusalWorld, change: object) -> None:
    before = picture(world.home)
    assert differing_bytes(before, picture(world.home)) == ([], 0)
    change(world.home)  # type: ignore[operator]
    assert differing_bytes(before, picture(world.home))[0]


def test_a_picture_shows_a_row(world: RefusalWorld) -> None:
    before = picture(world.home)
    with world.database() as db:
        db.execute("UPDATE models SET created_at = 'yesterday'")
    assert differing_bytes(before, picture(world.home))[0] == [".malmen/ledger.db"]
