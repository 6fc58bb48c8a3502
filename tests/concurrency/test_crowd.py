"""R7: eight processes on one checkpoint, some killed holding its lock: nothing is lost, no gap, no false alarm."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from figures import Figures
from fork_server import Server
from ledger_world import make_world
from verdict import Verdict, judge

TITLE = "R7: eight processes at once"
MIXED = ("apply", "apply", "revert", "revert_head", "read", "verify", "gc", "data")
EDITORS = ("apply", "apply", "apply", "revert", "gc_states", "editor", "verify", "recover")


def crowd(server: Server, folder: Path, roles: tuple[str, ...], seconds: float, **options: object) -> Verdict:
    """A world, a crowd in it, and the verdict."""
    world = folder / "world"
    make_world(world, sharded=True)
    for number in range(3):
        (world / f"split-{number}.jsonl").write_text('{"prompt": "a", "target": "b"}\n')
    counted = server.ask(
        "crowd", folder=str(folder), roles=[(role, str(world)) for role in roles], seconds=seconds, **options
    )
    return judge(folder, [world], counted)


@pytest.mark.parametrize("seed", [0])
@pytest.mark.parametrize("roles", [MIXED, EDITORS], ids=["mixed", "gc of states, editors"])
def test_nothing_is_lost(
    server: Server, fast_folder: Path, figures: Figures, full: bool, roles: tuple[str, ...], seed: int
) -> None:
    seconds = 60.0 if full else 3.0
    began = time.monotonic()
    found = crowd(server, fast_folder, roles, seconds, seed=seed, kills=0.15, murders=0.5)
    figures(TITLE, crowd=", ".join(roles), processes=8, **found.figures(), seconds=time.monotonic() - began)
    assert not found.wrong, found.summary()
    assert found.counts["committed"]
    assert not full or (found.counts["refused"] and found.counts["killed_holding"] and found.counts["killed_pending"])


def test_with_a_real_model(torch_server: Server, fast_folder: Path, figures: Figures, full: bool) -> None:
    """`malmen apply`, `revert`, `plan`, `eval`, `diff`, `export` and `verify` on a tiny model, some killed."""
    if not full:
        pytest.skip("takes a minute and a half: --full")
    import tiny_models

    roles = ["real_apply"] * 3 + ["revert_head", "revert_head", "real_read", "real_read", "verify"]
    world = tiny_models.make_world(fast_folder / "world", sharded=True)
    began = time.monotonic()
    given = [(role, str(fast_folder / "world")) for role in roles]
    counted = torch_server.ask("crowd", folder=str(fast_folder), roles=given, seconds=90.0, murders=0.5)
    found = judge(fast_folder, [world.workspace.root.parent], counted, real=True)
    crowd = "malmen apply, revert, plan, eval, diff, export, verify"
    figures(TITLE, crowd=crowd, processes=8, **found.figures(), seconds=time.monotonic() - began)
    assert not found.wrong, found.summary()
    assert found.counts["committed"] > 1


def test_without_the_lock_the_harness_notices(server: Server, fast_folder: Path, figures: Figures) -> None:
    """Negative control: the same crowd, every lock a stand-in that keeps nobody out."""
    began = time.monotonic()
    found = crowd(server, fast_folder, MIXED, 2.0, without=["lock"])
    figures(TITLE, crowd="no lock (control)", processes=8, **found.figures(), seconds=time.monotonic() - began)
    assert found.wrong, "no harm was done without the lock, or it was not seen"


def test_a_verification_that_does_not_wait_gives_false_alarms(
    server: Server, fast_folder: Path, figures: Figures
) -> None:
    """Negative control: verify as it is without `verify_when_quiet`."""
    began = time.monotonic()
    roles = ("apply", "apply", "revert", "revert", "verify", "verify", "verify", "verify")
    found = crowd(server, fast_folder, roles, 2.0, without=["quiet verify"])
    figures(TITLE, crowd="verify once (control)", processes=8, **found.figures(), seconds=time.monotonic() - began)
    assert found.counts["false_alarms"]
    assert {line.split(":")[0] for line in found.wrong} == {"false_alarms"}
