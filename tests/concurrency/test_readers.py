"""Readers while a writer works: its work is never reported as damage, and true damage is, once it is quiet."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from held import Stage, writer
from ledger_world import apply, fact, make_world, tiny
from program import run_here
from safetensors_folders import file_digests

from malmen_cli.checkpoint import checkpoint_lock
from malmen_cli.checkpoint.lock import is_locked, writers_kept_out
from malmen_cli.errors import ExitCode, Locked, MalmenError, UsageError, WrongBase
from malmen_cli.ledger import Ledger, Workspace, reading, unmoved, verify_when_quiet


@pytest.fixture
def world(tmp_path: Path) -> tuple[Workspace, Path]:
    """One entry, in two shards."""
    workspace, checkpoint = make_world(tmp_path / "world", sharded=True)
    with Ledger.open(workspace, writing=True) as ledger:
        apply(ledger, fact("a"), fact("b"))  # two: other rows than those of the one fact of `held`
    return workspace, checkpoint


def damage(workspace: Workspace) -> Path:
    """Change a byte of an object that no writer needs: the rows of the first fact."""
    with Ledger.open(workspace) as ledger, ledger.read() as db:
        path = ledger.objects.path(db.execute("SELECT object FROM row_packs").fetchone()[0])
    path.chmod(0o644)
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    return path


def verify(capfd: pytest.CaptureFixture[str], workspace: Workspace, timeout: str) -> tuple[int, str, str]:
    return run_here(capfd, "verify", "--workspace", workspace.root, "--lock-timeout", timeout)


class TestVerify:
    def test_finds_nothing_wrong_with_a_writer_that_has_not_begun(
        self, world: tuple[Workspace, Path], capfd: pytest.CaptureFixture[str]
    ) -> None:
        with writer(world[0].root, "locked"):
            began = time.monotonic()
            assert verify(capfd, world[0], "60")[0] == 0
            assert time.monotonic() - began < 20, "it waited"

    @pytest.mark.parametrize("stage", ["pending", "half"])
    def test_ends_as_locked_where_a_writer_does_not_finish(
        self, world: tuple[Workspace, Path], capfd: pytest.CaptureFixture[str], stage: Stage
    ) -> None:
        with writer(world[0].root, stage) as other:
            files = file_digests(world[1])
            code, out, err = verify(capfd, world[0], "0.3")
            assert (code, out) == (ExitCode.LOCKED, "")
            assert f"process {other.pid} on " in err and ": malmen apply theirs.jsonl" in err
            assert file_digests(world[1]) == files
            assert other.go_on() == 0
        assert verify(capfd, world[0], "0")[0] == 0

    def test_waits_for_a_writer_that_finishes(
        self, world: tuple[Workspace, Path], capfd: pytest.CaptureFixture[str]
    ) -> None:
        with writer(world[0].root, "half") as other:
            later = threading.Timer(1.5, other.go_on)
            later.start()
            code, _, err = verify(capfd, world[0], "60")
            later.join()
        assert code == 0
        assert err.count("; waiting for it") == 1

    def test_reports_true_damage_once_it_is_quiet(
        self, world: tuple[Workspace, Path], capfd: pytest.CaptureFixture[str]
    ) -> None:
        path = damage(world[0])
        with writer(world[0].root, "half") as other:
            assert verify(capfd, world[0], "0.1")[0] == ExitCode.LOCKED
            later = threading.Timer(0.5, other.go_on)
            later.start()
            code, out, _ = verify(capfd, world[0], "60")
            later.join()
        assert code == ExitCode.VERIFICATION_FAILED
        assert [line for line in out.splitlines() if str(path) in line] == out.splitlines()

    def test_reports_what_a_killed_command_left(
        self, world: tuple[Workspace, Path], capfd: pytest.CaptureFixture[str]
    ) -> None:
        with writer(world[0].root, "half") as other:
            other.kill()
        code, out, _ = verify(capfd, world[0], "60")
        assert code == ExitCode.VERIFICATION_FAILED and "it was interrupted" in out

    def test_of_damage_writes_nothing_and_keeps_writers_out(self, world: tuple[Workspace, Path]) -> None:
        workspace, checkpoint = world
        damage(workspace)
        before = file_digests(checkpoint), file_digests(workspace.root)
        with Ledger.open(workspace) as ledger:
            assert len(verify_when_quiet(ledger).problems) == 1
        assert (file_digests(checkpoint), file_digests(workspace.root)) == before
        with writers_kept_out([checkpoint, workspace.root]):
            assert not is_locked(checkpoint), "a reader is no writer"
            with writers_kept_out([checkpoint]):  # readers keep out writers only
                pass
            with pytest.raises(Locked, match="another process"), checkpoint_lock(checkpoint, "malmen apply"):
                pass
            assert file_digests(checkpoint) == before[0]


class TestOtherReaders:
    def test_of_a_checkpoint_that_stays_as_it_is(self, world: tuple[Workspace, Path]) -> None:
        with Ledger.open(world[0]) as ledger:
            with reading(ledger, tiny(ledger)):
                pass
            with pytest.raises(UsageError), reading(ledger, tiny(ledger)):
                raise UsageError("its own error")

    @pytest.mark.parametrize("error", [None, WrongBase("what looked like damage")])
    def test_of_one_that_was_written_meanwhile(self, world: tuple[Workspace, Path], error: MalmenError | None) -> None:
        with (
            Ledger.open(world[0], writing=True) as ledger,
            pytest.raises(Locked, match="while this command read it"),
            Ledger.open(world[0]) as reader,
            reading(reader, tiny(reader)),
        ):
            apply(ledger, fact("c"))
            if error is not None:
                raise error

    def test_of_one_that_is_half_written(self, world: tuple[Workspace, Path]) -> None:
        with Ledger.open(world[0]) as reader, writer(world[0].root, "half") as other:
            with pytest.raises(Locked, match=r"is held by process \d+ on .*: malmen"), reading(reader, tiny(reader)):
                pass
            with pytest.raises(Locked), unmoved(reader, tiny(reader)):
                pass
            with unmoved(reader, tiny(reader), checked=True):
                pass
            other.kill()
            with unmoved(reader, tiny(reader)):  # it does not move any more
                pass
            with pytest.raises(WrongBase, match="is not settled"), reading(reader, tiny(reader)):
                pass

    def test_diff_does_not_call_a_writers_work_strange(
        self, world: tuple[Workspace, Path], capfd: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ("diff", "HEAD", "checkpoint", "--json", "--workspace", world[0].root)
        with writer(world[0].root, "half") as other:
            code, out, err = run_here(capfd, *arguments)
            assert (code, out) == (ExitCode.LOCKED, "") and "while this command read it" in err
            # States of entries are what they are.
            assert run_here(capfd, "diff", "HEAD", "HEAD", "--workspace", world[0].root)[0] == 0
            assert other.go_on() == 0
        code, out, _ = run_here(capfd, *arguments)
        assert code == 0 and json.loads(out)["not_in_ledger"] == []
