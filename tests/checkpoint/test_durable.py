from __future__ import annotations

import errno
import os
import random
import shutil
import stat
from pathlib import Path

import pytest
from safetensors_folders import names_in

from malmen_cli.checkpoint import canonical_json, digest_bytes, digest_file, digests, is_digest, remove_leftovers, short
from malmen_cli.checkpoint.durable import Need, make_folders, require_space, require_writable, write_durably
from malmen_cli.errors import MalmenError, UnsafeFile


def test_digest_of_a_range_is_that_of_its_bytes(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(data)
    assert digest_file(tmp_path / "file") == digest_bytes(data)
    assert digest_file(tmp_path / "file", 5, 2_000_000) == digest_bytes(data[5:2_000_005])
    assert digest_file(tmp_path / "file", 3_000_000, 0) == digest_bytes(b"")
    with pytest.raises(UnsafeFile):
        digest_file(tmp_path / "file", 1, 3_000_000)


@pytest.mark.parametrize("threaded", [0, 1 << 40], ids=["in threads", "in one"])
def test_digests_of_ranges_are_those_of_each(threaded: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "THREADED", threaded)
    file = tmp_path / "file"
    file.write_bytes(random.Random(0).randbytes(300_000))
    ranges = [(length * 7 % 1000, length) for length in (299_000, 0, 1, 70_000, 5, 200_000)]
    assert digests.digest_ranges(file, ranges) == [digest_file(file, *part) for part in ranges]
    assert digests.digest_ranges(file, []) == []
    with pytest.raises(UnsafeFile, match="10 bytes too early"):
        digests.digest_ranges(file, [*ranges, (0, 300_010)])


def test_the_largest_digests_are_begun_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one thread the order is plain to see."""
    monkeypatch.setattr(digests, "THREADED", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    begun = []

    def digest(text: str) -> str:
        begun.append(text)
        return digest_bytes(text.encode())

    texts = ["a", "bbb", "", "cc", "ddd"]
    assert digests.digest_many(digest, texts, [len(text) for text in texts]) == [digest(text) for text in texts]
    assert begun[:5] == ["bbb", "ddd", "cc", "a", ""]


@pytest.mark.parametrize("threaded", [0, 1 << 40], ids=["in threads", "in one"])
def test_of_several_digests_that_fail_the_first_ones_error_is_raised(
    threaded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "THREADED", threaded)

    def digest(number: int) -> str:
        raise UnsafeFile(f"number {number}", remedy="")

    with pytest.raises(UnsafeFile, match="number 1"):
        digests.digest_many(digest, [1, 2, 3], [1, 2, 3])


def test_digests_are_tagged_and_shortened() -> None:
    digest = digest_bytes(b"")
    assert digest == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert short(digest) == "e3b0c44298"
    assert is_digest(digest)
    assert not any(map(is_digest, [digest.upper(), digest + "\n", digest[:-1], "sha256:../../etc/passwd", None]))


def test_canonical_json_has_one_spelling_per_value() -> None:
    assert (
        canonical_json({"b": [1, 0.1], "a": "é"})
        == canonical_json({"a": "é", "b": [1, 0.1]})
        == '{"a":"é","b":[1,0.1]}'
    )
    with pytest.raises(ValueError, match="float"):
        canonical_json(float("nan"))


def test_a_file_is_replaced_whole_with_the_mode_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_durably(path, b"old", mode=0o444)
    write_durably(path, b"new", mode=0o640)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert names_in(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["pwrite", "fsync", "rename"])
def test_a_failing_disk_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(MalmenError, match="No space left") as caught:
        write_durably(path, b"new")
    assert caught.value.remedy
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["file"]


def test_leftovers_are_regular_files_of_our_name_only(tmp_path: Path) -> None:
    for name in (".malmen-tmp-1", ".malmen-tmp-2", "malmen-tmp", "config.json"):
        (tmp_path / name).write_text("")
    (tmp_path / ".malmen-tmp-folder").mkdir()
    (tmp_path / ".malmen-tmp-link").symlink_to(tmp_path / "config.json")
    assert remove_leftovers(tmp_path) == [".malmen-tmp-1", ".malmen-tmp-2"]
    assert names_in(tmp_path) == [".malmen-tmp-folder", ".malmen-tmp-link", "config.json", "malmen-tmp"]


def test_too_little_space_is_said_in_numbers(tmp_path: Path) -> None:
    require_space([Need(tmp_path, (1,), "a letter")])
    with pytest.raises(MalmenError, match=r"needs 1,000,000,000\.00 GB for a library in .*, and .* are free") as caught:
        require_space([Need(tmp_path / "not" / "there", (10**18,), "a library")])
    assert "nothing was changed" in str(caught.value.remedy)


def test_needs_on_one_disk_are_summed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 10_000))  # type: ignore[attr-defined]
    needs = [Need(tmp_path, (4096,), "one"), Need(tmp_path / "b", (1,), "two")]  # a byte takes a block
    require_space(needs)
    with pytest.raises(
        MalmenError, match=r"needs 12\.29 kB: 4\.10 kB for one in .*, 8\.19 kB for two in .*, and 10\.00 kB"
    ):
        require_space([needs[0], Need(tmp_path, (1, 4096), "two")])


def test_a_folder_that_another_process_removes_while_it_is_found_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the system's word that the name is taken and the look whether by a folder."""
    folder = tmp_path / "folder"
    folder.mkdir()
    is_dir = Path.is_dir

    def removed(path: Path) -> bool:
        if path == folder and is_dir(folder):
            folder.rmdir()
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", removed)
    make_folders(folder)
    assert folder.exists()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MalmenError, match="file"):
        make_folders(tmp_path / "file")


def test_a_folder_that_is_not_there_is_as_writable_as_the_nearest_above_it(tmp_path: Path) -> None:
    require_writable(tmp_path / "below" / "it")
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(MalmenError, match="file is no folder"):
            require_writable(path)
