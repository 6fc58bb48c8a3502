"""R1, R2, R9: killed at any moment, or failed by the disk: the next command ends in exactly before or after.

Every command that writes runs under strace once for each of its state-changing calls and each kind of fault: killed
on the entry of that call, or the call failing of a full disk (ENOSPC) or a broken one (EIO). A killed process loses
nothing that it wrote, so the worlds lie in memory. What the next writing command then finds must be, by the digests of
all files and by the ledger's rows, the state before or the state after; everything must verify, nothing may lie about
that no gc would take, and from the state before, the same command must succeed. A gc may stop halfway: the next one
goes on.

Here and in CI a sample of all that needs no torch; with `--full` every point, and the program itself on real models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from fault_cases import CASES
from fault_sweep import Sweep
from figures import Figures
from injected_faults import Fault, Point, Server, why_not
from ledger_world import FAST

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

# In the tables, * stands for: the mathematics stood in for, all else real.
KILLED = "R1, R9: SIGKILL before each state-changing call; the next command ends in before or after (*: stand-in)"
FAILED = "R2: each state-changing call fails once: an error in words, the next command ends in before or after"
UNREAD = "R2: each call that reads or looks fails once with EIO: the next command ends in before or after"
CONTROLS = "R1, negative controls: careless writers, which must lose"

EVERY_POINT = ("apply, sharded", "revert HEAD")  # of the kills, without --full too
# Every so many points of each command are tried; with --full every one, but for these.
KILLS, ERRORS, READS = 14, 28, 50
READS_FULL, REAL_KILLS, REAL_ERRORS = 3, 3, 9
REAL_REPEATS = 6  # of the points that leave a real model as before, the command is run again at every so many

PLAIN = [name for name, case in CASES.items() if not case.naive and not case.torch]
REAL = [name for name, case in CASES.items() if case.torch]
CARELESS = [name for name, case in CASES.items() if case.naive]


@pytest.fixture(scope="module")
def server() -> Iterator[Callable[[bool], Server]]:
    """A server without torch or with it, each started when it is first asked for."""
    started: list[Server] = []

    @cache
    def start(torch: bool) -> Server:
        started.append(Server(torch=torch))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def sweep(request: pytest.FixtureRequest, server: Callable[[bool], Server]) -> Iterator[Sweep]:
    name = str(request.param)
    with TemporaryDirectory(dir=FAST) as home:
        yield Sweep(name, server(CASES[name].torch), Path(home).resolve())


def swept(sweep: Sweep, fault: Fault, figures: Figures, step: int, repeat: int = 1, only: str = "") -> list[str]:
    """Strike with one kind of fault, put what came of it into the table, and return what was bad."""
    found = sweep.strike(fault, step, repeat, only)
    row = {"command": sweep.case.command, "files": sweep.case.files, "calls": found.calls, "points": found.tried}
    ends = {"before": found.count("before"), "after": found.count("after"), "bad": len(found.bad)}
    kind = {} if fault == "SIGKILL" else {"error": fault}
    title = CONTROLS if sweep.case.naive else KILLED if fault == "SIGKILL" else FAILED
    figures(title, **row, **kind, **ends, seconds=found.seconds)
    if fault == "SIGKILL" and not found.bad:
        assert found.ends == sorted(found.ends, reverse=True), "what is done was undone by a later kill"
        assert step > 1 or sweep.before == sweep.after or set(found.ends) == {"before", "after"}
    return found.bad


@pytest.mark.parametrize("sweep", PLAIN, indirect=True)
def test_any_fault_leaves_before_or_after(sweep: Sweep, full: bool, figures: Figures) -> None:
    kills = 1 if full or sweep.name in EVERY_POINT else KILLS
    bad = swept(sweep, "SIGKILL", figures, kills)
    for error in ("ENOSPC", "EIO"):
        bad += swept(sweep, error, figures, 1 if full else ERRORS)
    assert not bad, "\n".join(bad[:20])


@pytest.mark.parametrize("name", REAL)
def test_any_fault_in_a_real_model(name: str, server: Callable[[bool], Server], full: bool, figures: Figures) -> None:
    if not full:
        pytest.skip("real models, under strace: --full")
    with TemporaryDirectory(dir=FAST) as home:
        sweep = Sweep(name, server(True), Path(home).resolve())
        bad = swept(sweep, "SIGKILL", figures, REAL_KILLS, REAL_REPEATS)
        for error in ("ENOSPC", "EIO"):
            bad += swept(sweep, error, figures, REAL_ERRORS, REAL_REPEATS)
    assert not bad, "\n".join(bad[:20])


@pytest.mark.parametrize("sweep", PLAIN, indirect=True)
def test_a_read_that_fails_does_no_harm(sweep: Sweep, full: bool, figures: Figures) -> None:
    """What a disk fails to give must not be taken for something that is not there."""
    found = sweep.strike("EIO", READS_FULL if full else READS, points=sweep.reads)
    bad = found.bad
    if not full and sweep.name == "revert HEAD":  # few reads, and once it was written anew without what was in it
        bad = bad + sweep.strike("EIO", only="/model/.malmen.json", points=sweep.reads).bad
    ends = {"before": found.count("before"), "after": found.count("after"), "bad": len(found.bad)}
    row = {"command": sweep.case.command, "files": sweep.case.files, "calls": found.calls, "points": found.tried}
    figures(UNREAD, **row, **ends, seconds=found.seconds)
    assert not bad, "\n".join(bad[:20])


@pytest.mark.parametrize("sweep", ["revert HEAD"], indirect=True)
def test_a_struck_call_has_not_happened(sweep: Sweep) -> None:
    """What the sweep rests on: a kill strikes before its call, and so do errors, which the program is then told."""
    place = next(index for index, point in enumerate(sweep.points) if point.call == "rename")
    rename, next_one = sweep.points[place : place + 2]
    shard = sweep.folder / "model" / "model.safetensors"
    original = (sweep.saved / "model" / "model.safetensors").read_bytes()

    def struck(point: Point, fault: Fault) -> tuple[bool, int, str]:
        with sweep.restored():
            ended = sweep.server.strike(sweep.name, sweep.folder, point, fault)
            assert ended.struck
            return shard.read_bytes() != original, ended.code, ended.words

    assert struck(rename, "SIGKILL") == (False, -9, "")
    assert struck(next_one, "SIGKILL") == (True, -9, "")
    for error, words in (("ENOSPC", "No space left"), ("EIO", "Input/output error")):
        changed, code, said = struck(rename, error)  # type: ignore[arg-type]
        assert (changed, code) == (False, 1) and words in said
    with sweep.restored():
        never = Point(rename.call, 100, "", ())
        assert not sweep.server.strike(sweep.name, sweep.folder, never, "SIGKILL").struck


@pytest.mark.parametrize("sweep", CARELESS, indirect=True)
def test_a_careless_writer_loses(sweep: Sweep, full: bool, figures: Figures) -> None:
    """The same sweep over a writer without one of its safeties."""
    assert swept(sweep, "SIGKILL", figures, 1, only="" if full else ".safetensors")
