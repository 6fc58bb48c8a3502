from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from safetensors_folders import names_in

from malmen_cli.checkpoint import checkpoint_lock, lock
from malmen_cli.checkpoint.lock import LOCK_NAME, is_locked, require_held, writers_kept_out
from malmen_cli.errors import Locked, MalmenError, UnsafeFile, WrongBase

HOLD = """
import sys
from pathlib import Path
from malmen_cli.checkpoint import checkpoint_lock
with checkpoint_lock(Path(sys.argv[1]), "malmen apply facts.jsonl"):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_the_holder_is_named_and_its_end_frees_the_lock(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(Locked) as caught, checkpoint_lock(tmp_path, "malmen revert"):
            pass
        assert f"process {process.pid}" in caught.value.message
        assert "malmen apply facts.jsonl" in caught.value.message
        process.communicate()
    with checkpoint_lock(tmp_path, "malmen revert"):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
    assert names_in(tmp_path) == []


def test_a_killed_holder_is_taken_over(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / LOCK_NAME).exists()
        with checkpoint_lock(tmp_path, "malmen revert"):
            pass
    assert names_in(tmp_path) == []


def test_waiters_get_it_one_at_a_time(tmp_path: Path) -> None:
    """Also across the removal of the lock file by each holder."""
    inside, most, done = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, done
        for _ in range(5):
            with checkpoint_lock(tmp_path, "work", timeout=30):
                inside += 1
                most = max(most, inside)
                done += 1
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, done) == (1, 20)
    assert names_in(tmp_path) == []


def words(**changes: object) -> bytes:
    """What a holder writes, with changes."""
    holder = {
        "pid": os.getpid(),
        "host": "elsewhere",
        "command": "malmen apply",
        "started": "2026-01-01T00:00:00+00:00",
    }
    return json.dumps(holder | changes).encode()


ODD = {
    "empty": b"",
    "a list": b"[]",
    "nothing in it": b"{}",
    "not UTF-8": b"\xff",
    "a pid that is text": words(pid="x"),
    "a pid beyond numbers": words().replace(str(os.getpid()).encode(), b"1e999"),
    "a host that is none": words(host=["x"]),
    "a time that is none": words(started="yesterday"),
    "a time without a zone": words(started="2026-01-01T00:00:00"),
    "a time that is a number": words(started=1e300),
    "deep": b"[" * 60_000,
    "huge": b'{"pid": 1, "host": "' + b"x" * (1 << 20),
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD.keys())
def test_a_lock_file_with_odd_content_still_locks(tmp_path: Path, content: bytes) -> None:
    with checkpoint_lock(tmp_path, "malmen apply"):
        (tmp_path / LOCK_NAME).write_bytes(content)
        with pytest.raises(Locked, match="another process"), checkpoint_lock(tmp_path, "malmen revert"):
            pass


def test_control_characters_of_a_holder_are_escaped(tmp_path: Path) -> None:
    with checkpoint_lock(tmp_path, "apply \x1b[31m\u202e.txt"):
        with pytest.raises(Locked) as caught, checkpoint_lock(tmp_path, "malmen revert"):
            pass
        assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    "content",
    [*ODD.values(), words(), words(pid=1, command="malmen gc")],
    ids=[*ODD, "words of this process", "words of a gc"],  # the words hold a process id, which names no test twice
)
def test_a_file_left_over_is_taken_over_at_once(tmp_path: Path, content: bytes) -> None:
    """Whatever it says, a process that lives among it: the kernel knows that nobody holds it."""
    (tmp_path / LOCK_NAME).write_bytes(content)
    assert not is_locked(tmp_path)
    with checkpoint_lock(tmp_path, "malmen revert"):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["command"] == "malmen revert"
    assert names_in(tmp_path) == []


def test_a_second_name_of_another_file_is_not_written_into(tmp_path: Path) -> None:
    folder, precious = tmp_path / "model", tmp_path / "precious"
    folder.mkdir()
    precious.write_text("keep me")
    (folder / LOCK_NAME).hardlink_to(precious)
    with checkpoint_lock(folder, "malmen apply"):
        assert is_locked(folder)
    assert precious.read_text() == "keep me" and names_in(folder) == []


@pytest.mark.parametrize("what", ["a pipe", "a folder"])
def test_what_is_no_file_is_refused_in_words(tmp_path: Path, what: str) -> None:
    os.mkfifo(tmp_path / LOCK_NAME) if what == "a pipe" else (tmp_path / LOCK_NAME).mkdir()
    with pytest.raises(MalmenError, match=LOCK_NAME) as caught, checkpoint_lock(tmp_path, "malmen apply"):
        pass
    assert caught.value.remedy


@pytest.mark.parametrize(
    "seconds, age", [(5, "5 s"), (119, "119 s"), (150, "2 min"), (7_500, "2 h 5 min"), (-60, "0 s")]
)
def test_the_holders_age_is_told_as_people_say_it(tmp_path: Path, seconds: int, age: str) -> None:
    started = (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()
    with checkpoint_lock(tmp_path, "malmen apply"):
        (tmp_path / LOCK_NAME).write_bytes(words(started=started))
        with pytest.raises(Locked, match=f" on elsewhere for {age}: "), checkpoint_lock(tmp_path, "malmen revert"):
            pass


def test_a_holder_that_has_not_written_its_name_yet_is_waited_for(tmp_path: Path) -> None:
    """For longer than anybody waits for the lock itself; a name that never comes is not waited for without end."""
    path = tmp_path / LOCK_NAME
    with checkpoint_lock(tmp_path, "malmen apply"):
        named = path.read_bytes()
        path.write_bytes(b"")
        later = threading.Timer(lock._GRACE * 1.4, path.write_bytes, [named])
        later.start()
        with pytest.raises(Locked, match=f"process {os.getpid()} on "), checkpoint_lock(tmp_path, "malmen revert"):
            pass
        later.join()
        path.write_bytes(b"")
        with pytest.raises(Locked, match="which left no name"), checkpoint_lock(tmp_path, "malmen revert"):
            pass


def test_a_long_command_is_cut(tmp_path: Path) -> None:
    with checkpoint_lock(tmp_path, "malmen apply " + "x" * 100_000):
        with pytest.raises(Locked, match=r"process .*: malmen apply x+") as caught, checkpoint_lock(tmp_path, "malmen"):
            pass
        assert len(caught.value.message) < 1000


class TestALockFileThatIsTakenAwayByHand:
    """While its holder lives. Nobody should do this; whoever does must not let a second writer in."""

    @pytest.mark.parametrize("how", ["removed", "replaced", "replaced by a link"])
    def test_the_folder_is_still_locked(self, tmp_path: Path, how: str) -> None:
        path = tmp_path / LOCK_NAME
        with holder(tmp_path) as process:
            path.unlink()
            if how == "replaced":
                path.write_bytes(words())
            elif how == "replaced by a link":
                path.symlink_to("elsewhere")
            before = names_in(tmp_path)
            assert is_locked(tmp_path)
            for timeout in (0, 0.5):
                with pytest.raises(Locked), checkpoint_lock(tmp_path, "malmen revert", timeout):
                    pass
            with pytest.raises(Locked), writers_kept_out([tmp_path]):
                pass
            assert names_in(tmp_path) == before
            process.communicate()

    def test_the_holder_takes_the_name_back(self, tmp_path: Path) -> None:
        with checkpoint_lock(tmp_path, "malmen apply"):
            require_held(tmp_path)
            (tmp_path / LOCK_NAME).unlink()
            require_held(tmp_path)
            assert (tmp_path / LOCK_NAME).exists()
        assert names_in(tmp_path) == []

    def test_where_folders_cannot_be_locked_the_holder_stops(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As between hosts on a network file system: the file alone decides."""
        only_files(monkeypatch)
        with checkpoint_lock(tmp_path, "malmen apply"):
            (tmp_path / LOCK_NAME).unlink()
            with checkpoint_lock(tmp_path, "malmen revert"):
                held = lock._held[tmp_path]
                lock._held[tmp_path] = lock._Held(None, os.open(__file__, os.O_RDONLY))  # what the first one has
                with pytest.raises(Locked, match=r"removed by hand, and now it is held by process .*: malmen revert"):
                    require_held(tmp_path)
                os.close(lock._held[tmp_path].file)
                lock._held[tmp_path] = held
        assert names_in(tmp_path) == []

    def test_a_folder_put_in_the_place_of_the_locked_one(self, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        folder.mkdir()
        with checkpoint_lock(folder, "malmen apply"):
            folder.rename(tmp_path / "aside")
            folder.mkdir()
            with pytest.raises(Locked, match="was replaced"):
                require_held(folder)

    def test_writing_without_a_lock_is_a_defect(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError, match="without its lock"):
            require_held(tmp_path)


def only_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system on which folders cannot be locked."""
    real = lock._flock
    monkeypatch.setattr(
        lock, "_flock", lambda path, operation, flags: None if path.is_dir() else real(path, operation, flags)
    )


class TestWhereOnlyFilesCanBeLocked:
    @pytest.fixture(autouse=True)
    def _only_files(self, monkeypatch: pytest.MonkeyPatch) -> None:
        only_files(monkeypatch)

    def test_one_writer_at_a_time(self, tmp_path: Path) -> None:
        with holder(tmp_path) as process:
            assert is_locked(tmp_path)
            with pytest.raises(Locked, match=f"process {process.pid} "), checkpoint_lock(tmp_path, "malmen revert"):
                pass
            process.communicate()
        test_waiters_get_it_one_at_a_time(tmp_path)

    def test_a_reader_learns_of_a_writer_that_came_meanwhile(self, tmp_path: Path) -> None:
        with pytest.raises(Locked, match="malmen apply"), writers_kept_out([tmp_path]):
            lock._held[tmp_path] = held = lock._lock(tmp_path / LOCK_NAME)
            lock._write_words(tmp_path / LOCK_NAME, held.file, "malmen apply")
        del lock._held[tmp_path]
        os.close(held.file)


def test_those_who_only_look_keep_nobody_out(tmp_path: Path) -> None:
    """A look takes a shared lock for a moment; a writer that meets one waits that long."""
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            is_locked(tmp_path)
            time.sleep(0.001)

    lookers = [threading.Thread(target=look) for _ in range(4)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(50):
            with checkpoint_lock(tmp_path, "malmen apply"):
                assert is_locked(tmp_path)
    finally:
        ended.set()
        for looker in lookers:
            looker.join()


def test_places_that_cannot_be_locked_are_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(WrongBase, match="is gone"), checkpoint_lock(tmp_path / "absent", "malmen apply"):
        pass
    (tmp_path / LOCK_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeFile, match="is a link"), checkpoint_lock(tmp_path, "malmen apply"):
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("when", ["before it is opened", "after"])
def test_a_folder_that_is_made_anew_while_it_is_locked_is_locked_itself(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who ends a training run removes its folder; the next run's must not be held by its lock file alone."""
    folder, flock, done = tmp_path / "run", lock._flock, []
    folder.mkdir()

    def made_anew(path: Path, operation: int, flags: int) -> int | None:
        if done or path != folder:
            return flock(path, operation, flags)
        done.append(path)
        folder.rmdir()
        found = None
        if when == "after":
            folder.mkdir()
            found = flock(path, operation, flags)
            folder.rmdir()
            (tmp_path / "other").mkdir()  # so that the next one has another number
        folder.mkdir()
        return found

    monkeypatch.setattr(lock, "_flock", made_anew)
    with checkpoint_lock(folder, "malmen train"):
        held = lock._held[folder].folder
        assert held is not None and os.path.samestat(os.fstat(held), folder.stat())
    assert done and names_in(folder) == []


def test_a_folder_is_locked_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    with checkpoint_lock(tmp_path / "link", "malmen apply"):
        assert is_locked(tmp_path / "folder")


def test_what_another_users_killed_command_left_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / LOCK_NAME
    left.write_text("{}")
    own, opened = left.stat().st_ino, os.open
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != left or left.stat().st_ino != own)

    def refusing(path: Path, flags: int, *mode: int) -> int:
        if flags & os.O_RDWR and Path(path) == left and left.exists() and left.stat().st_ino == own:
            raise PermissionError(13, "Permission denied")
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", refusing)
    alive = opened(left, os.O_RDONLY)
    fcntl.flock(alive, fcntl.LOCK_EX)
    with pytest.raises(Locked), checkpoint_lock(tmp_path, "malmen revert"):
        pass
    assert left.stat().st_ino == own
    os.close(alive)
    kept_open = opened(left, os.O_RDONLY)  # so that its inode is not used again
    with checkpoint_lock(tmp_path, "malmen revert"):
        assert left.stat().st_ino != own
    os.close(kept_open)
    assert names_in(tmp_path) == []
