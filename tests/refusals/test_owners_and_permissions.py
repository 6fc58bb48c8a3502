"""R8: what one may not write is not begun, and a workspace that is a stranger's, or open to strangers, is not used.

Permissions do not bind root: a process forked off gives its rights away first, and the world with them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_caches import cache_state
from other_rights import IS_ROOT, NOBODY, OWN_MOUNTS, can_mount, forked, give_away
from refusal_world import SHARDS, RefusalWorld, differing_bytes, picture, run_program
from refusals import CHECKPOINT, WRITING, Case, Prepare, Tally, problems_of
from safetensors_folders import file_digests

from malmen_cli.errors import ExitCode

EVERY = (*CHECKPOINT, "gc", "models add", "data add")
TO_WORKSPACE = (*WRITING, "gc", "models add", "data add")
TO_CHECKPOINT = (*WRITING, "recover")


# As another user -----------------------------------------------------------------------------------------------------


def try_forked(case: Case, world: RefusalWorld, tally: Tally, *, full: bool) -> None:
    world.restore()
    case.prepare(world)
    give_away(world)
    before = picture(world.home)
    tally.cases += 1
    bad = []
    commands = case.commands if full else [case.commands[len(case.name) % len(case.commands)]]
    for command in commands:
        tally.commands += 1
        status, out, err = forked(world, lambda command=command: run_program(world.arguments(command)))  # type: ignore[misc]
        problems = problems_of(case, command, status, out, err)
        names, size = differing_bytes(before, picture(world.home))
        problems += [f"changed: {', '.join(names[:8])}"] * bool(names)
        tally.refused += not problems
        tally.bytes_written += size
        bad += [f"{command}: {'; '.join(problems)}\n{(err + out)[:600]}"] * bool(problems)
    assert not bad, "\n".join(bad)


def mode(name: str, bits: int, *, of: str = "home") -> Prepare:
    return lambda world: (getattr(world, of) / name).chmod(bits)  # type: ignore[return-value]


def modes(folder: str, bits: int, below: int) -> Prepare:
    """Of a folder and all that is in it."""

    def prepare(world: RefusalWorld) -> None:
        for path in sorted((world.home / folder).rglob("*"), reverse=True):
            path.chmod(bits if path.is_dir() else below)
        (world.home / folder).chmod(bits)

    return prepare


FAILED, USAGE, WRONG = ExitCode.FAILED, ExitCode.USAGE, ExitCode.WRONG_BASE
UNSOUND = ExitCode.VERIFICATION_FAILED
PERMISSIONS = [
    Case("a read-only checkpoint", modes("model", 0o555, 0o444), TO_CHECKPOINT, USAGE, "cannot write in .*model"),
    Case("a checkpoint folder without write permission", mode("model", 0o555), TO_CHECKPOINT, USAGE, "cannot write in"),
    Case("an unreadable shard", mode(SHARDS[0], 0o200, of="model"), CHECKPOINT, WRONG, "Permission denied"),
    Case("an unreadable tokenizer", mode("tokenizer.json", 0, of="model"), CHECKPOINT, WRONG, "tokenizer.json cannot"),
    Case("a closed checkpoint folder", mode("model", 0), TO_CHECKPOINT, USAGE, "cannot write in|Permission denied"),
    Case("a read-only workspace", modes(".malmen", 0o555, 0o444), TO_WORKSPACE, FAILED, "cannot use .*ledger.db"),
    Case("a workspace folder without write permission", mode(".malmen", 0o555), TO_WORKSPACE, FAILED, "cannot use"),
    Case("a read-only database", mode(".malmen/ledger.db", 0o444), TO_WORKSPACE, FAILED, "cannot use .*ledger.db"),
    Case("an unreadable database", mode(".malmen/ledger.db", 0), EVERY, FAILED, "cannot use .*ledger.db"),
    Case("read-only objects", modes(".malmen/objects", 0o555, 0o444), ("apply", "rebase"), FAILED, "cannot write"),
    Case("unreadable objects", mode(".malmen/objects", 0), ("apply", "rebase"), FAILED, "Permission denied"),
    Case("unreadable objects, restored", mode(".malmen/objects", 0), ("revert HEAD",), UNSOUND, "cannot be read"),
    Case("read-only trainings", mode(".malmen/training", 0o555), ("train",), FAILED, "cannot write"),
    Case("read-only editors", mode(".malmen/editors", 0o555), ("train",), FAILED, "cannot write"),
    Case(
        "a folder to export to that is read-only", mode("", 0o555), ("export", "apply --output"), FAILED, "cannot write"
    ),
    Case("a read-only new model", modes("fresh", 0o555, 0o444), ("models add",), USAGE, "cannot write in"),
]


@pytest.mark.parametrize("case", PERMISSIONS, ids=str)
def test_permissions(case: Case, made_world: RefusalWorld, tallies: dict[str, Tally], full: bool) -> None:
    try_forked(case, made_world, tallies.setdefault("permissions", Tally()), full=full)


@pytest.mark.parametrize("command", ["export", "apply --output", "plan -o", "eval --failed"])
def test_a_read_only_place_for_results_is_told_before_they_are_made(made_world: RefusalWorld, command: str) -> None:
    """By the folder's name: what finds out at its end names the file."""
    made_world.restore()
    place = made_world.home / "read-only"
    place.mkdir()
    give_away(made_world)
    place.chmod(0o555)
    verb, option = (command.split()[0], "--failed") if command.endswith("--failed") else (command, "--output")
    for name in ("new", "below/new") if command in ("export", "apply --output") else ("new",):
        words = [*made_world.arguments(verb), option, str(place / name)]
        status, _, err = forked(made_world, lambda words=words: run_program(words))  # type: ignore[misc]
        assert status == FAILED and f"cannot write in {place}\n" in err and not list(place.iterdir())


def test_without_such_a_permission_missing_the_same_commands_succeed(world: RefusalWorld) -> None:
    give_away(world)
    for command in ("apply", "train", "models add", "gc"):
        status, _, err = forked(world, lambda command=command: run_program(world.arguments(command)))  # type: ignore[misc]
        assert status in (ExitCode.DONE, ExitCode.FACTS_FAILED_CHECK), err


def test_a_read_only_file_in_a_folder_of_ones_own_is_replaced_and_stays_read_only(world: RefusalWorld) -> None:
    """As `mv` and every editor do: the folder's permission counts. Hub caches keep some blobs so."""
    for name in SHARDS:
        (world.model / name).chmod(0o444)
    before = file_digests(world.model)
    give_away(world)
    assert forked(world, lambda: run_program(world.arguments("apply")))[0] == ExitCode.FACTS_FAILED_CHECK
    assert {(world.model / name).stat().st_mode & 0o777 for name in SHARDS} == {0o444}
    assert forked(world, lambda: run_program(world.arguments("revert HEAD")))[0] == ExitCode.DONE
    assert file_digests(world.model) == before


def test_a_working_copy_of_a_read_only_cache(world: RefusalWorld) -> None:
    for path in sorted(world.cache.rglob("*"), reverse=True):
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)
    give_away(world)
    before = cache_state(world.cache)
    for command in ("models add, hub", "train", "apply", "revert HEAD"):
        words = world.arguments(command) + ([] if "hub" in command else ["--model", "hub"])
        status, _, err = forked(world, lambda words=words: run_program(words))  # type: ignore[misc]
        assert status in (ExitCode.DONE, ExitCode.FACTS_FAILED_CHECK), f"{command}: {err}"
    assert cache_state(world.cache) == before


# Strangers' workspaces -----------------------------------------------------------------------------------------------


def owned(*names: str) -> Prepare:
    def prepare(world: RefusalWorld) -> None:
        for name in names:
            os.chown(world.home / name, NOBODY, NOBODY)

    return prepare


def linked(owner: int) -> Prepare:
    """The workspace reached through a link that somebody made."""

    def prepare(world: RefusalWorld) -> None:
        (world.home / ".malmen").rename(world.home / "elsewhere")
        (world.home / ".malmen").symlink_to("elsewhere")
        os.chown(world.home / ".malmen", owner, owner, follow_symlinks=False)

    return prepare


def strangers(name: str, prepare: Prepare, words: str) -> Case:
    return Case(name, prepare, EVERY, FAILED, words)


def opened(name: str, bits: int) -> Prepare:
    """A part of a workspace that others may enter."""

    def prepare(world: RefusalWorld) -> None:
        world.workspace.chmod(0o755)
        (world.workspace / name).chmod(bits)

    return prepare


OWNED = [
    strangers("a workspace of another user", owned(".malmen"), "belongs to another user"),
    strangers("a ledger of another user", owned(".malmen/ledger.db"), "belongs to another user"),
    strangers("objects of another user", owned(".malmen/objects"), "belongs to another user"),
    strangers("editors of another user", owned(".malmen/editors"), "belongs to another user"),
    strangers("a link that another user made", linked(NOBODY), "is a link that another user made"),
]
OPEN = [
    strangers("a workspace that all can write in", mode(".malmen", 0o777), "every user can write in"),
    strangers("the same with a sticky bit", mode(".malmen", 0o1777), "every user can write in"),
    strangers("a ledger that all can write", opened("ledger.db", 0o666), "every user can write in"),
    strangers("objects that all can add to", opened("objects", 0o777), "every user can write in"),
    strangers("editors that all can add to", opened("editors", 0o777), "every user can write in"),
]


@pytest.mark.skipif(not IS_ROOT, reason="only root can give a folder to another user")
@pytest.mark.parametrize("case", OWNED, ids=str)
def test_a_strangers_workspace(case: Case, refuse: Callable[[str, Case], None]) -> None:
    refuse("somebody else's workspace", case)


@pytest.mark.parametrize("case", OPEN, ids=str)
def test_a_workspace_open_to_strangers(case: Case, refuse: Callable[[str, Case], None]) -> None:
    refuse("somebody else's workspace", case)


def test_parts_that_all_could_write_behind_a_closed_door(world: RefusalWorld) -> None:
    """As an umask of 0 makes them."""
    for name in ("objects", "editors"):
        (world.workspace / name).chmod(0o777)
    assert run_program(world.arguments("revert HEAD")) == ExitCode.DONE


def test_a_workspace_through_a_link_of_ones_own(world: RefusalWorld) -> None:
    linked(os.geteuid())(world)
    assert run_program(world.arguments("revert HEAD")) == ExitCode.DONE


# A mount -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not can_mount(), reason="needs the commands unshare and mount, and the right to use them")
@pytest.mark.parametrize("place", ["model", ".malmen"])
def test_a_read_only_mount(world: RefusalWorld, place: str, tallies: dict[str, Tally]) -> None:
    tally = tallies.setdefault("a read-only mount", Tally(cases=0))
    tally.cases += 1
    before = picture(world.home)
    folder = world.home / place
    script = f"mount --bind {folder} {folder} && mount -o remount,bind,ro {folder} && exec {sys.executable} "
    script += f"-m malmen_cli {' '.join(world.arguments('revert HEAD'))}"
    ran = subprocess.run(
        [*OWN_MOUNTS, "sh", "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    tally.commands += 1
    names, size = differing_bytes(before, picture(world.home))
    tally.bytes_written += size
    code, words = (USAGE, "cannot write in") if place == "model" else (FAILED, "cannot use")
    case = Case(place, lambda world: None, ("revert HEAD",), code, words)
    problems = problems_of(case, "revert HEAD", ran.returncode, ran.stdout, ran.stderr)
    tally.refused += not problems and not names
    assert (problems, names) == ([], []), ran.stderr
