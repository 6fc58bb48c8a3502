from __future__ import annotations

import stat
from pathlib import Path

import pytest

from malmen_cli.checkpoint import digest_bytes
from malmen_cli.errors import MalmenError, VerificationFailed
from malmen_cli.ledger import ObjectStore


def test_what_is_put_is_got(tmp_path: Path) -> None:
    objects = ObjectStore(tmp_path / "objects")
    blobs = [b"", b"one", b"two", b"one"]
    digests = objects.put_many(blobs)
    assert digests == [digest_bytes(blob) for blob in blobs]
    assert [objects.get(digest) for digest in digests] == blobs
    assert sorted(objects) == sorted(set(digests))
    assert {stat.S_IMODE(objects.path(digest).stat().st_mode) for digest in digests} == {0o444}


def test_a_sound_object_is_not_written_again_and_a_damaged_one_is(tmp_path: Path) -> None:
    objects = ObjectStore(tmp_path)
    path = objects.path(objects.put(b"one"))
    inode = path.stat().st_ino
    objects.put(b"one")
    assert path.stat().st_ino == inode
    path.chmod(0o644)
    path.write_bytes(b"ome")
    objects.put(b"one")
    assert path.read_bytes() == b"one"


def test_damage_and_loss_are_named(tmp_path: Path) -> None:
    objects = ObjectStore(tmp_path)
    digest = objects.put(b"one")
    path = objects.path(digest)
    path.chmod(0o644)
    path.write_bytes(b"on")
    with pytest.raises(VerificationFailed, match=path.name):
        objects.get(digest)
    path.unlink()
    with pytest.raises(VerificationFailed, match=rf"^object \S*{path.name} cannot be read: No such file"):
        objects.get(digest)
    assert not objects.contains(digest)


@pytest.mark.parametrize("name", ["", "sha256:", "../../etc/passwd", "sha256:" + "../" * 21 + "x", "md5:" + "0" * 64])
def test_only_digests_are_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(VerificationFailed):
        ObjectStore(tmp_path).get(name)


def test_a_place_that_cannot_be_written_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "objects").write_text("in the way")
    with pytest.raises(MalmenError, match="cannot write"):
        ObjectStore(tmp_path / "objects").put(b"one")
