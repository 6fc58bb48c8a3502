"""R3: the power fails at any moment of a writing command, and the next one finds exactly before or after.

Each command is recorded once (recorded_writes.py). Cut at many moments, with many choices of what remains of all that
was not synced (simulated_disk.py), the recording gives images of the disk. On each the next command must settle,
everything must verify, and the state must be that before or that after the command that was at work. From the moment
at which a command has said that it was done, it must be after.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from operator import is_
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from figures import Figures
from ledger_world import FAST
from power_cuts import Cuts, cuts_after_kill, cuts_of, cuts_of_program
from recorded_commands import COMMANDS, Command, inspect_entries, inspect_rows, real_world
from recorded_writes import why_not
from simulated_disk import PLAIN, Operation

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

Recorded = Callable[[str], Cuts]
IMAGES, IMAGES_FULL = 40, 1000  # of each command, at most
TITLE = "R3: the power fails; images of the disk with what was not synced missing, torn or out of order"
AFTER_KILL = "R3: a kill, another command, then the power fails"
CONTROLS = "R3, negative controls: images of a writer without one of its safeties, which must lose"
NEEDED = "R3: each sync left out alone"

AGAIN = {  # what runs after the kill
    "apply, two shards": "settle: complete",
    "revert to the base": "settle: complete",
    "register a model": "register a model",
    "make a workspace": "make a workspace",
    "upgrade the schema": "upgrade the schema",
    "save an editor": "save an editor",
    "gc of everything": "gc of everything",
    "copy a checkpoint": "copy a checkpoint",
}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """The one path of a world: the ledger knows its checkpoint by it, in every image too."""
    with TemporaryDirectory(dir=FAST) as place:
        yield Path(place).resolve() / "now"


@pytest.fixture(scope="module")
def recorded(folder: Path) -> Callable[[str], Cuts]:
    """Each command's recording, made once; the cuts begin anew each time."""
    made: dict[str, Cuts] = {}

    def fresh(name: str) -> Cuts:
        known = made.setdefault(name, made.get(name) or cuts_of(name, folder))
        return Cuts(known.command, known.recording, folder, known.states)

    return fresh


SLOW = ("make a workspace", "upgrade the schema", "save an editor")


def row(figures: Figures, title: str, cuts: Cuts, **first: object) -> None:
    operations, syncs = len(cuts.recording.operations), cuts.recording.syncs()
    figures(title, **first, operations=operations, syncs=syncs, images=cuts.tried, bad=len(cuts.bad))


@pytest.mark.parametrize("name", COMMANDS)
def test_power_loss(name: str, recorded: Recorded, full: bool, figures: Figures) -> None:
    cuts = recorded(name)
    assert len(cuts.states) > 1, "it never said that it was done"
    assert cuts.states[0] != cuts.states[-1] or name.startswith("settle")
    cuts.attempt_many(IMAGES_FULL if full else IMAGES)
    row(figures, TITLE, cuts, command=name)
    assert not cuts.bad, "\n".join(cuts.bad[:20])


def judged(name: str) -> Command:
    """What a killed gc had dropped may come back: it can be dropped again, and nothing else depends on it."""
    command = COMMANDS[name]
    if name != "gc of everything":
        return command
    return replace(command, inspect=lambda folder: command.inspect(folder)[1])  # type: ignore[index]


@pytest.mark.parametrize("name", AGAIN)
def test_power_loss_after_a_kill(name: str, recorded: Recorded, full: bool, figures: Figures) -> None:
    """What a killed command had not synced, the next one must not take for durable because it is there."""
    if name in SLOW and not full:
        pytest.skip("seconds for each kill: --full")
    first = recorded(name)
    moments = sorted({moment for moment in first.telling_moments() if moment <= first.dones[0]})
    step = 1 if full else len(moments) // 2
    images, bad = 0, []
    for moment in moments[step // 2 :: step]:
        cuts = cuts_after_kill(first, moment, AGAIN[name], judged(name))
        for choice in PLAIN:
            for end in {len(cuts.recording.operations), *(place + 1 for place in cuts.dones)}:
                cuts.attempt(end, PLAIN[choice], choice)
        if full:
            cuts.attempt_many(40, seed=moment)
        images, bad = images + cuts.tried, bad + [f"killed at {moment}, {line}" for line in cuts.bad]
    kills = len(moments[step // 2 :: step])
    figures(AFTER_KILL, killed=name, then=AGAIN[name], kills=kills, images=images, bad=len(bad))
    assert not bad, "\n".join(bad[:20])


# Negative controls ---------------------------------------------------------------------------------------------------


def of_database(operation: Operation) -> bool:
    return "ledger.db" in operation.text


@pytest.mark.parametrize("what", ["files", "folders", "the database"])
@pytest.mark.parametrize("name", ["apply, two shards", "register a model", "save an editor"])
def test_a_disk_that_is_not_synced_loses(
    name: str, what: str, recorded: Recorded, full: bool, figures: Figures
) -> None:
    """The same recording with one kind of sync taken out."""
    cuts = recorded(name)

    def dropped(operation: Operation) -> bool:
        if operation.kind != "sync" or of_database(operation):
            return operation.kind == "sync" and what == "the database"
        folders = cuts.recording.before[operation.node].kind == "folder"
        return what == ("folders" if folders else "files")

    careless = Cuts(cuts.command, cuts.recording.without(dropped), cuts.folder, cuts.states)
    careless.attempt_many(IMAGES_FULL // 4 if full else IMAGES // 2)
    row(figures, CONTROLS, careless, control=f"{name}: {what} not synced")
    assert careless.bad


@pytest.mark.parametrize("name", ["apply with synchronous = OFF", "apply, the checkpoint before the ledger"])
def test_a_careless_writer_loses(name: str, recorded: Recorded, full: bool, figures: Figures) -> None:
    careless = recorded(name)
    careless.attempt_many(IMAGES_FULL // 4 if full else IMAGES // 2)
    row(figures, CONTROLS, careless, control=name)
    assert careless.bad


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "six entries in a row"])
def test_which_syncs_are_needed(name: str, recorded: Recorded, full: bool, figures: Figures) -> None:
    """Says of each sync whether anything is lost without it: where most could go, the harness would be blind."""
    if not full:
        pytest.skip("takes minutes: --full")
    cuts = recorded(name)
    syncs = [operation for operation in cuts.recording.operations if operation.kind == "sync"]
    needed, images, idle = 0, 0, []
    for one in syncs:
        recording = cuts.recording.without(partial(is_, one))
        careless = Cuts(cuts.command, recording, cuts.folder, cuts.states)
        careless.attempt_many(60)
        images += careless.tried
        needed += bool(careless.bad)
        if not careless.bad:
            idle.append(one.text)
    print(f"{name}: nothing was lost without {idle}")
    figures(NEEDED, command=name, syncs=len(syncs), needed=needed, images=images)


# malmen itself -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(folder: Path) -> Callable[[Path], None]:
    """Puts a real world in place: made once, since it takes torch half a minute."""
    saved = folder.with_name("real")

    def put(place: Path) -> None:
        if not saved.exists():
            real_world(place)
            place.rename(saved)
        shutil.copytree(saved, place)

    return put


@pytest.mark.parametrize(
    "arguments, inspect",
    [
        ("apply {folder}/facts.jsonl --device cpu --sample 0", inspect_entries),
        ("revert HEAD", inspect_entries),
        ("train {folder}/facts.jsonl --model tiny --steps 2", inspect_rows),
    ],
)
def test_malmen_itself(
    arguments: str,
    inspect: Callable[[Path], object],
    folder: Path,
    real: Callable[[Path], None],
    full: bool,
    figures: Figures,
) -> None:
    if not full:
        pytest.skip("loads torch under strace: --full")
    words = arguments.format(folder=folder).split()
    cuts = cuts_of_program(words, Command(real, lambda _: iter(()), inspect), folder)
    assert cuts.states[0] != cuts.states[-1]
    cuts.attempt_many(IMAGES_FULL)
    row(figures, TITLE, cuts, command=f"malmen {arguments.split()[0]}, a real model of two shards")
    assert not cuts.bad, "\n".join(cuts.bad[:20])
