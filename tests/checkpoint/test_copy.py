"""A copied model folder: the source with the changes in it, whole or not at all."""

from __future__ import annotations

import os
import random
import signal
import stat
from pathlib import Path

import pytest
from safetensors_folders import EDITED, file_digests, names_in, write_model_folder

from malmen_cli.checkpoint import (
    Manifest,
    TensorChange,
    check_checkpoint,
    copy_checkpoint,
    digest_bytes,
    read_manifest,
    read_tensor,
    write_changes,
)
from malmen_cli.checkpoint.durable import TEMPORARY
from malmen_cli.checkpoint.new_folder import new_folder
from malmen_cli.errors import Locked, MalmenError, UnsafeFile, UsageError, WrongBase

CALLS = ("pwrite", "copy_file_range", "fsync", "rename", "mkdir", "open")


def change_of(folder: Path, manifest: Manifest, name: str) -> TensorChange:
    slot = manifest.slot(name)
    before = read_tensor(folder / manifest.tensors[name].file, slot)
    data = random.Random(name).randbytes(slot.length)
    return TensorChange(name, digest_bytes(before), digest_bytes(data), data)


@pytest.fixture(params=["one file", "two shards"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = write_model_folder(tmp_path / "model", sharded=request.param == "two shards")
    (folder / "LICENSE").write_text("Theirs.")
    (folder / ".malmen.json").write_text("{}")
    (folder / ".malmen.lock").write_text("{}")
    (folder / "elsewhere.md").symlink_to("/etc/hostname")
    return folder


def test_a_copy_without_changes_has_the_same_files_and_no_sidecar(source: Path, tmp_path: Path) -> None:
    before = file_digests(source)
    target = tmp_path / "below" / "copy"
    copy_checkpoint(source, read_manifest(source), [], target)
    assert file_digests(source) == before
    hidden = {".malmen.json", ".malmen.lock", "elsewhere.md"}
    assert file_digests(target) == {name: digest for name, digest in before.items() if name not in hidden}
    assert names_in(target.parent) == ["copy"]


def test_the_copy_is_the_manifest_with_the_changes_in_it(source: Path, tmp_path: Path) -> None:
    manifest = read_manifest(source)
    changes = [change_of(source, manifest, name) for name in EDITED[:2]]
    target = tmp_path / "copy"
    target.mkdir()  # an empty folder may be there
    before = file_digests(source)
    copy_checkpoint(source, manifest, changes, target, {"malmen.json": b"{}", "README.md": b"Ours."})
    assert check_checkpoint(target, manifest, {change.name: change.after for change in changes}) == []
    assert file_digests(source) == before
    assert (target / "malmen.json").read_bytes() == b"{}"
    assert (target / "README.md").read_text() == "Ours."
    assert (target / "base-README.md").read_text() == "A model."
    # And it is what patching the source in place gives.
    write_changes(source, manifest, changes)
    assert all((target / name).read_bytes() == (source / name).read_bytes() for name in manifest.weights)


def test_tensors_that_were_edited_before_are_named_by_state(source: Path, tmp_path: Path) -> None:
    manifest = read_manifest(source)
    earlier, later = (change_of(source, manifest, name) for name in EDITED[:2])
    write_changes(source, manifest, [earlier])
    with pytest.raises(WrongBase, match=earlier.name):
        copy_checkpoint(source, manifest, [later], tmp_path / "copy")
    copy_checkpoint(source, manifest, [later], tmp_path / "copy", state={earlier.name: earlier.after})
    assert check_checkpoint(tmp_path / "copy", manifest, {c.name: c.after for c in (earlier, later)}) == []


class TestRefusals:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        return write_model_folder(tmp_path / "model")

    @pytest.mark.parametrize("kind", ["folder", "file", "link"])
    def test_of_a_target_that_is_there(self, source: Path, tmp_path: Path, kind: str) -> None:
        target = tmp_path / "copy"
        if kind == "folder":
            target.mkdir()
            (target / "mine").write_text("kept")
        elif kind == "file":
            target.write_text("kept")
        else:
            target.symlink_to(tmp_path / "nowhere")
        before = names_in(tmp_path)
        with pytest.raises(UsageError, match="is there already"):
            copy_checkpoint(source, read_manifest(source), [], target)
        assert names_in(tmp_path) == before

    @pytest.mark.parametrize("damage", ["unedited tensor", "tensor", "config.json", "a lost file", "size"])
    def test_of_a_source_that_changed_since(self, source: Path, tmp_path: Path, damage: str) -> None:
        manifest = read_manifest(source)
        change = change_of(source, manifest, EDITED[0])
        path = source / "model.safetensors"
        if damage == "a lost file":
            (source / "tokenizer.json").unlink()
        elif damage == "config.json":
            (source / "config.json").write_text("{}")
        elif damage == "size":
            path.write_bytes(path.read_bytes() + b"more")
        else:
            data = bytearray(path.read_bytes())
            data[manifest.slot("embed.weight" if damage == "unedited tensor" else EDITED[0]).start] ^= 1
            path.write_bytes(data)
        with pytest.raises((WrongBase, UnsafeFile)):
            copy_checkpoint(source, manifest, [change], tmp_path / "copy")
        assert names_in(tmp_path) == ["model"]

    def test_of_links_in_the_source(self, source: Path, tmp_path: Path) -> None:
        manifest = read_manifest(source)
        (source / "config.json").rename(tmp_path / "config.json")
        (source / "config.json").symlink_to(tmp_path / "config.json")
        with pytest.raises(UnsafeFile, match="link"):
            copy_checkpoint(source, manifest, [], tmp_path / "copy")

    @pytest.mark.parametrize("name", ["../escape", "below/file", ".hidden"])
    def test_of_extra_files_that_are_paths(self, source: Path, tmp_path: Path, name: str) -> None:
        with pytest.raises(UnsafeFile):
            copy_checkpoint(source, read_manifest(source), [], tmp_path / "copy", {name: b""})
        assert names_in(tmp_path) == ["model"]

    def test_of_a_disk_that_is_too_small(self, source: Path, tmp_path: Path) -> None:
        free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
        huge = source / "huge.bin"
        huge.touch()
        os.truncate(huge, min(free + (1 << 30), 1 << 42))  # a hole: it takes no space itself
        manifest = read_manifest(write_model_folder(tmp_path / "other"))
        manifest = Manifest(manifest.tensors, manifest.weights, {**manifest.others, "huge.bin": digest_bytes(b"")})
        with pytest.raises(MalmenError, match=r"B for the copy in .*, and .* are free"):
            copy_checkpoint(source, manifest, [], tmp_path / "copy")
        assert names_in(tmp_path) == ["model", "other"]

    def test_of_a_target_that_another_process_is_making(self, source: Path, tmp_path: Path) -> None:
        with new_folder(tmp_path / "copy") as part, pytest.raises(Locked):
            (part / "theirs").write_text("safe")
            copy_checkpoint(source, read_manifest(source), [], tmp_path / "copy")
        assert names_in(tmp_path / "copy") == ["theirs"]


def test_the_mode_of_new_files_heeds_the_umask(tmp_path: Path) -> None:
    source = write_model_folder(tmp_path / "model")
    (source / "model.safetensors").chmod(0o666)
    umask = os.umask(0o027)
    try:
        copy_checkpoint(source, read_manifest(source), [], tmp_path / "copy")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "copy" / "model.safetensors").stat().st_mode) == 0o640


def killed_at(number: int, source: Path, target: Path) -> bool:
    """Copy in a forked child that dies before its `number`-th call that changes something; False when it lived."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            made = [0]

            def counted(call):  # type: ignore[no-untyped-def]
                def instead(*arguments: object, **options: object) -> object:
                    made[0] += 1
                    if made[0] == number:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return call(*arguments, **options)

                return instead

            manifest = read_manifest(source)
            changes = [change_of(source, manifest, EDITED[0])]
            for name in CALLS:
                setattr(os, name, counted(getattr(os, name)))
            copy_checkpoint(source, manifest, changes, target, {"malmen.json": b"{}"})
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_killed_at_any_moment_there_is_nothing_or_all_and_the_next_copy_succeeds(tmp_path: Path) -> None:
    source, target = write_model_folder(tmp_path / "model"), tmp_path / "copy"
    copy_checkpoint(source, read_manifest(source), [change_of(source, read_manifest(source), EDITED[0])], target)
    whole = file_digests(target) | {"malmen.json": digest_bytes(b"{}")}
    tried, there = 0, set()
    while True:
        for path in target.iterdir() if target.exists() else ():
            path.unlink()
        target.exists() and target.rmdir()
        tried += 1
        if not killed_at(tried, source, target):
            break
        assert set(names_in(tmp_path)) <= {"model", "copy", f"{TEMPORARY}copy"}
        there.add(target.exists())
        if target.exists():
            assert file_digests(target) == whole
        # What was left behind, if anything, is in nobody's way: every round begins with it.
    assert tried > 15 and there == {True, False}
    assert file_digests(target) == whole
    assert names_in(tmp_path) == ["copy", "model"]
