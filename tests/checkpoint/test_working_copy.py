from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_caches import cache_model, cache_state
from safetensors_folders import EDITED, file_digests, names_in, write_model_folder

from malmen_cli.checkpoint import TensorChange, digest_bytes, read_manifest, write_changes
from malmen_cli.checkpoint.pickled_files import PickledFiles
from malmen_cli.checkpoint.safetensors_file import read_tensor
from malmen_cli.checkpoint.working_copy import make_working_copy
from malmen_cli.errors import MalmenError, UnsafeFile, UnsupportedModel, UsageError

REPO = "org/tiny"


@pytest.fixture(params=[False, True], ids=["one file", "shards"])
def snapshot(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return cache_model(tmp_path / "cache", REPO, write_model_folder(tmp_path / "source", sharded=request.param))


def copy(snapshot: Path, target: Path) -> int:
    return make_working_copy(snapshot, snapshot.parents[1] / "blobs", target)


def change_tensors(folder: Path) -> None:
    manifest = read_manifest(folder)
    changes = []
    for name in EDITED:
        file = folder / manifest.tensors[name].file
        data = bytes(byte ^ 1 for byte in read_tensor(file, manifest.slot(name)))
        changes.append(TensorChange(name, manifest.tensors[name].digest, digest_bytes(data), data))
    write_changes(folder, manifest, changes)


def test_the_copy_is_the_model_in_plain_files(snapshot: Path, tmp_path: Path) -> None:
    before = cache_state(tmp_path / "cache")
    assert copy(snapshot, tmp_path / "copy") == 0
    assert file_digests(tmp_path / "copy") == file_digests(tmp_path / "source")
    assert not any(path.is_symlink() for path in (tmp_path / "copy").iterdir())
    assert read_manifest(tmp_path / "copy") == read_manifest(tmp_path / "source")
    assert cache_state(tmp_path / "cache") == before


def test_weights_are_linked_and_small_files_are_not(snapshot: Path, tmp_path: Path) -> None:
    copy(snapshot, tmp_path / "copy")
    for path in (tmp_path / "copy").iterdir():
        same = path.samefile((snapshot / path.name).resolve())
        assert same == path.name.endswith(".safetensors"), path.name


def test_an_edit_of_the_copy_changes_neither_snapshot_nor_blob(snapshot: Path, tmp_path: Path) -> None:
    copy(snapshot, tmp_path / "copy")
    before = cache_state(tmp_path / "cache")
    change_tensors(tmp_path / "copy")
    assert file_digests(tmp_path / "copy") != file_digests(tmp_path / "source")
    assert cache_state(tmp_path / "cache") == before


def test_without_links_the_weights_are_copied(snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    weights = sum(path.stat().st_size for path in (tmp_path / "source").glob("*.safetensors"))
    assert copy(snapshot, tmp_path / "copy") == weights
    assert file_digests(tmp_path / "copy") == file_digests(tmp_path / "source")


def test_a_failing_disk_leaves_nothing(snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(MalmenError, match="cannot write"):
        copy(snapshot, tmp_path / "copies" / "copy")
    assert names_in(tmp_path / "copies") == []


def test_other_weights_folders_and_hidden_files_are_left_out(tmp_path: Path) -> None:
    source = write_model_folder(tmp_path / "source")
    for name in ("pytorch_model.bin", "flax_model.msgpack", ".gitattributes"):
        (source / name).write_bytes(b"x")
    snapshot = cache_model(tmp_path / "cache", REPO, source)
    (snapshot / "onnx").mkdir()
    (snapshot / "additional_chat_templates").mkdir()
    (snapshot / "additional_chat_templates" / "rag.jinja").symlink_to((snapshot / "config.json").resolve())
    copy(snapshot, tmp_path / "copy")
    assert (tmp_path / "copy" / "additional_chat_templates" / "rag.jinja").read_bytes()
    shutil.rmtree(tmp_path / "copy" / "additional_chat_templates")
    kept = [name for name in names_in(source) if name.endswith((".json", ".md", ".safetensors"))]
    assert names_in(tmp_path / "copy") == kept


def test_weights_of_other_formats_alone_are_refused_in_words(tmp_path: Path) -> None:
    source = write_model_folder(tmp_path / "source")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    snapshot = cache_model(tmp_path / "cache", REPO, source)
    with pytest.raises(UnsupportedModel, match=r"holds neither model\.safetensors"):
        copy(snapshot, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


class TestPickledWeights:
    """Whoever can read them says how; see tests/language_models/test_pickled_weights.py."""

    @pytest.fixture
    def pickled(self, tmp_path: Path) -> Path:
        source = write_model_folder(tmp_path / "source")
        (source / "model.safetensors").rename(source / "pytorch_model.bin")
        (source / "training_args.bin").write_bytes(b"x")
        return cache_model(tmp_path / "cache", REPO, source)

    def test_they_are_looked_at_before_anything_is_written(self, pickled: Path, tmp_path: Path) -> None:
        def refuse(found: PickledFiles) -> Callable[[Path], int]:
            raise UnsafeFile(f"not {', '.join(found.files)}", remedy="none")

        with pytest.raises(UnsafeFile, match=r"not pytorch_model\.bin"):
            make_working_copy(pickled, pickled.parents[1] / "blobs", tmp_path / "copies" / "copy", refuse)
        assert not (tmp_path / "copies").exists()

    def test_what_is_written_for_them_stands_in_their_place(self, pickled: Path, tmp_path: Path) -> None:
        def rename(found: PickledFiles) -> Callable[[Path], int]:
            data = found.files["pytorch_model.bin"].read_bytes()
            return lambda folder: (folder / "model.safetensors").write_bytes(data)

        copied = make_working_copy(pickled, pickled.parents[1] / "blobs", tmp_path / "copy", rename)
        assert copied == (tmp_path / "source" / "pytorch_model.bin").stat().st_size
        names = ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
        assert names_in(tmp_path / "copy") == names
        read_manifest(tmp_path / "copy")

    def test_safetensors_come_first(self, snapshot: Path, tmp_path: Path) -> None:
        (snapshot / "pytorch_model.bin").write_bytes(b"x")

        def refuse(found: PickledFiles) -> Callable[[Path], int]:
            raise AssertionError(found)

        assert make_working_copy(snapshot, snapshot.parents[1] / "blobs", tmp_path / "copy", refuse) == 0


class TestLinks:
    def refused(self, snapshot: Path, tmp_path: Path) -> None:
        with pytest.raises(UnsafeFile):
            copy(snapshot, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()

    def test_out_of_the_blobs(self, snapshot: Path, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("mine")
        (snapshot / "notes.json").symlink_to(tmp_path / "secret")
        self.refused(snapshot, tmp_path)

    def test_out_of_the_blobs_by_way_of_a_blob(self, snapshot: Path, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("mine")
        blob = snapshot.parents[1] / "blobs" / "abc"
        blob.symlink_to(tmp_path / "secret")
        (snapshot / "notes.json").symlink_to(blob)
        self.refused(snapshot, tmp_path)

    def test_below_the_blobs_is_outside_too(self, snapshot: Path, tmp_path: Path) -> None:
        below = snapshot.parents[1] / "blobs" / "deep"
        below.mkdir()
        (below / "file").write_text("x")
        (snapshot / "notes.json").symlink_to(below / "file")
        self.refused(snapshot, tmp_path)

    def test_into_the_store_that_all_repositories_share_is_inside(self, snapshot: Path, tmp_path: Path) -> None:
        store = pytest.importorskip("huggingface_hub.utils._shared_blobs", reason="huggingface_hub 2 made the store")
        for number, path in enumerate(sorted(snapshot.glob("*.safetensors"))):
            blob, key = path.resolve(), f"{number:02x}" * 32
            size, cache = blob.stat().st_size, tmp_path / "cache"
            assert store.publish_blob_to_shared_store(
                blob_path=str(blob), xet_hash=key, cache_dir=cache, expected_size=size
            )
            assert blob.is_symlink() and blob.resolve().name == key
        before = cache_state(tmp_path / "cache")
        assert copy(snapshot, tmp_path / "copy") == 0
        assert file_digests(tmp_path / "copy") == file_digests(tmp_path / "source")
        change_tensors(tmp_path / "copy")  # although the store's files may not be written to
        assert file_digests(tmp_path / "copy") != file_digests(tmp_path / "source")
        assert cache_state(tmp_path / "cache") == before

    @pytest.mark.parametrize("place", ["cache/blobs/a", "cache/blobs/ab/cd/a", "cache/other/ab/a", "blobs/ab/a"])
    def test_beside_the_shared_store_is_outside(self, snapshot: Path, tmp_path: Path, place: str) -> None:
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_text("x")
        (snapshot / "notes.json").symlink_to(tmp_path / place)
        self.refused(snapshot, tmp_path)

    def test_to_nothing_and_in_a_circle(self, snapshot: Path, tmp_path: Path) -> None:
        (snapshot / "notes.json").symlink_to(snapshot.parents[1] / "blobs" / "gone")
        self.refused(snapshot, tmp_path)
        (snapshot / "notes.json").unlink()
        (snapshot / "notes.json").symlink_to("notes.json")
        self.refused(snapshot, tmp_path)

    def test_to_a_pipe(self, snapshot: Path, tmp_path: Path) -> None:
        os.mkfifo(snapshot.parents[1] / "blobs" / "pipe")
        (snapshot / "notes.json").symlink_to(snapshot.parents[1] / "blobs" / "pipe")
        self.refused(snapshot, tmp_path)


def test_a_folder_that_is_there_is_not_overwritten(snapshot: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "mine").write_text("mine")
    with pytest.raises(UsageError, match="already"):
        copy(snapshot, tmp_path / "copy")
    assert names_in(tmp_path / "copy") == ["mine"]


def test_a_snapshot_of_plain_files_is_copied_too(tmp_path: Path) -> None:
    """As huggingface_hub lays it out where the file system has no links."""
    home = tmp_path / "cache" / "models--org--tiny"
    snapshot = write_model_folder(home / "snapshots" / "abc")
    make_working_copy(snapshot, home / "blobs", tmp_path / "copy")
    assert file_digests(tmp_path / "copy") == file_digests(snapshot)
