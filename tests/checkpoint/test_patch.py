from __future__ import annotations

import errno
import os
import random
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors_folders import EDITED, file_digests, write_model_folder

from malmen_cli.checkpoint import (
    Manifest,
    TensorChange,
    check_checkpoint,
    digest_bytes,
    patch,
    read_manifest,
    read_tensor,
    write_changes,
)
from malmen_cli.errors import UnsafeFile, WrongBase


def change_of(folder: Path, manifest: Manifest, name: str, data: bytes | None = None) -> TensorChange:
    slot = manifest.slot(name)
    before = read_tensor(folder / manifest.tensors[name].file, slot)
    data = random.Random(name).randbytes(slot.length) if data is None else data
    return TensorChange(name, digest_bytes(before), digest_bytes(data), data)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    sharded=st.booleans(),
    dtype=st.sampled_from(["F32", "BF16", "F16"]),
    names=st.sets(st.sampled_from(EDITED), min_size=1),
    mode=st.sampled_from([0o600, 0o644, 0o664, 0o444]),
)
def test_patch_and_unpatch_restore_every_file(
    tmp_path_factory: pytest.TempPathFactory, sharded: bool, dtype: str, names: set[str], mode: int
) -> None:
    folder = write_model_folder(tmp_path_factory.mktemp("m") / "model", sharded=sharded, dtype=dtype)
    manifest, before = read_manifest(folder), file_digests(folder)
    for name in manifest.weights:
        (folder / name).chmod(mode)
    changes = [change_of(folder, manifest, name) for name in names]
    back = [
        TensorChange(
            c.name, c.after, c.before, read_tensor(folder / manifest.tensors[c.name].file, manifest.slot(c.name))
        )
        for c in changes
    ]
    write_changes(folder, manifest, changes)
    assert check_checkpoint(folder, manifest, {change.name: change.after for change in changes}) == []
    changed = {name for name, digest in file_digests(folder).items() if digest != before[name]}
    assert changed == {manifest.tensors[name].file for name in names}
    write_changes(folder, manifest, back)
    assert file_digests(folder) == before
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in manifest.weights} == {mode}


def test_a_wrong_before_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model")
    manifest, before = read_manifest(folder), file_digests(folder)
    sound = change_of(folder, manifest, EDITED[0])
    wrong = TensorChange(EDITED[1], digest_bytes(b"other"), digest_bytes(sound.data), sound.data)
    with pytest.raises(WrongBase, match=EDITED[1]):
        write_changes(folder, manifest, [sound, wrong])
    assert file_digests(folder) == before


def test_bytes_of_another_length_and_unknown_tensors_are_refused(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model")
    manifest, before = read_manifest(folder), file_digests(folder)
    for change in (change_of(folder, manifest, EDITED[0], b"short"), TensorChange("h.9", "", "", b"")):
        with pytest.raises(UnsafeFile):
            write_changes(folder, manifest, [change])
    assert file_digests(folder) == before


def test_a_link_is_never_written_through(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model")
    manifest = read_manifest(folder)
    change = change_of(folder, manifest, EDITED[0])
    blob = tmp_path / "blob"
    (folder / "model.safetensors").rename(blob)
    (folder / "model.safetensors").symlink_to(blob)
    before = digest_bytes(blob.read_bytes())
    with pytest.raises(UnsafeFile):
        write_changes(folder, manifest, [change])
    assert digest_bytes(blob.read_bytes()) == before


def test_a_hard_linked_copy_keeps_its_bytes(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model")
    manifest = read_manifest(folder)
    os.link(folder / "model.safetensors", tmp_path / "cache")
    before = digest_bytes((tmp_path / "cache").read_bytes())
    write_changes(folder, manifest, [change_of(folder, manifest, EDITED[0])])
    assert digest_bytes((tmp_path / "cache").read_bytes()) == before


def test_copying_by_hand_is_the_same_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel copies nothing or only a part, the rest is streamed."""
    real = os.copy_file_range
    for part in (0, 100):
        folder = write_model_folder(tmp_path / f"model{part}")
        manifest = read_manifest(folder)
        change = change_of(folder, manifest, EDITED[2])

        def partly(source: int, target: int, count: int, at: int, to: int, part: int = part) -> int:
            return real(source, target, part, at, to) if at < part else 0

        monkeypatch.setattr(os, "copy_file_range", partly)
        write_changes(folder, manifest, [change])
        assert check_checkpoint(folder, manifest, {change.name: change.after}) == []


@pytest.mark.parametrize("hint", ["taken", "refused", "unknown"])
def test_a_copy_in_parts_is_the_same_copy(hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the system makes of the hint that the disk may begin; it names every byte of the copy once."""
    data = random.Random(0).randbytes(1050)
    (tmp_path / "source").write_bytes(data)
    hinted: list[tuple[int, int]] = []

    def advise(descriptor: int, offset: int, length: int, advice: int) -> None:
        hinted.append((offset, length))
        if hint == "refused":
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(patch, "PART", 100)
    monkeypatch.setattr(patch, "_FICLONE", 0)  # else some file systems share the bytes instead
    if hint == "unknown":
        monkeypatch.delattr(os, "posix_fadvise", raising=False)
    else:
        monkeypatch.setattr(os, "posix_fadvise", advise, raising=False)
    with (tmp_path / "source").open("rb") as source, (tmp_path / "target").open("w+b") as target:
        patch.copy_file(source.fileno(), target.fileno(), len(data))
    assert (tmp_path / "target").read_bytes() == data
    if hint != "unknown":
        assert sum(length for _, length in hinted) == len(data)
        assert [offset for offset, _ in hinted] == [sum(length for _, length in hinted[:i]) for i in range(len(hinted))]


@pytest.mark.parametrize("kept", ["both", "group", "neither"])
def test_the_owner_is_kept_as_far_as_it_can_be(kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user may give a file to a group of its own, not to another user; in a user namespace some are unknown."""
    folder = write_model_folder(tmp_path / "model")
    manifest, asked = read_manifest(folder), list[tuple[int, int]]()

    def fchown(descriptor: int, user: int, group: int) -> None:
        asked.append((user, group))
        if kept == "neither" or (kept == "group" and user != -1):
            raise OSError(errno.EINVAL if kept == "neither" else errno.EPERM, "no")

    monkeypatch.setattr(os, "fchown", fchown)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    change = change_of(folder, manifest, EDITED[0])
    write_changes(folder, manifest, [change])
    status = (folder / manifest.tensors[EDITED[0]].file).stat()
    both, group = (status.st_uid, status.st_gid), (-1, status.st_gid)
    assert asked == ([both] if kept == "both" else [both, group])
    assert check_checkpoint(folder, manifest, {EDITED[0]: change.after}) == []
