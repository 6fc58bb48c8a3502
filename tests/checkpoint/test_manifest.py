from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors_folders import EDITED, file_digests, safetensors_bytes, write_model_folder

from malmen_cli.checkpoint import (
    Manifest,
    check_checkpoint,
    copy_checkpoint,
    digest_bytes,
    read_manifest,
    read_tensor,
)
from malmen_cli.errors import UnsafeFile, UnsupportedModel, UsageError

INDEX = "model.safetensors.index.json"


@pytest.fixture(params=[False, True], ids=["single", "sharded"])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return write_model_folder(tmp_path / "model", sharded=request.param)


def test_every_file_and_tensor_has_its_digest(folder: Path) -> None:
    manifest = read_manifest(folder)
    whole = {name: weights.digest for name, weights in manifest.weights.items()} | manifest.others
    assert whole == {name: digest for name, digest in file_digests(folder).items() if name != "README.md"}
    assert set(manifest.tensors) == {*EDITED, "embed.weight"}
    for name, record in manifest.tensors.items():
        assert digest_bytes(read_tensor(folder / record.file, manifest.slot(name))) == record.digest


def test_json_round_trip(folder: Path) -> None:
    manifest = read_manifest(folder)
    again = Manifest.from_json(manifest.to_json())
    assert again == manifest
    assert again.digest == manifest.digest


def test_hidden_files_documentation_and_subfolders_are_no_part_of_it(folder: Path) -> None:
    before = read_manifest(folder).digest
    (folder / ".malmen.json").write_text("{}")
    (folder / "README.md").write_text("Corrected.")
    (folder / "LICENSE.txt").write_text("Apache")
    (folder / "onnx").mkdir()
    assert read_manifest(folder).digest == before
    (folder / "added_tokens.json").write_text("{}")
    assert read_manifest(folder).digest != before


def test_data_and_records_of_work_are_no_part_of_it(folder: Path) -> None:
    before = read_manifest(folder)
    names = ("facts.jsonl", "dev.CSV", "train.log", "trainer_state.json", "training_args.bin", "events.out.tfevents.1")
    for name in names:
        (folder / name).write_text("one")
    assert read_manifest(folder).digest == before.digest
    of_before = replace(before, others=before.others | dict.fromkeys(names, digest_bytes(b"one")))
    (folder / "facts.jsonl").write_text("one, and one more")
    (folder / "train.log").unlink()
    assert check_checkpoint(folder, of_before, {}) == check_checkpoint(folder, before, {}) == []
    (folder / "config.json").write_text("{}")
    assert len(check_checkpoint(folder, of_before, {})) == 1


def test_further_chat_templates_are_part_of_it(folder: Path) -> None:
    templates = folder / "additional_chat_templates"
    templates.mkdir()
    (templates / "tool_use.jinja").write_text("{{ messages }}")
    (templates / ".hidden").write_text("")
    manifest = read_manifest(folder)
    name = "additional_chat_templates/tool_use.jinja"
    assert name in manifest.others and Manifest.from_json(manifest.to_json()) == manifest
    assert check_checkpoint(folder, manifest, {}) == []
    copy_checkpoint(folder, manifest, [], folder.with_name("copy"))
    assert (folder.with_name("copy") / name).read_text() == "{{ messages }}"
    (templates / "rag.jinja").write_text("")
    (templates / "tool_use.jinja").unlink()
    assert check_checkpoint(folder, manifest, {}) == [
        f"{name} is missing",
        "additional_chat_templates/rag.jinja was added",
    ]
    shutil.rmtree(templates)
    templates.symlink_to("/etc")
    assert "additional_chat_templates was added" in check_checkpoint(folder, manifest, {})
    with pytest.raises(UnsafeFile, match="is a link"):
        read_manifest(folder)


def test_a_linked_file_beside_the_weights_is_refused(folder: Path) -> None:
    (folder / "config.json").rename(folder.with_name("config.json"))
    (folder / "config.json").symlink_to(folder.with_name("config.json"))
    with pytest.raises(UnsafeFile, match=r"config\.json is a link"):
        read_manifest(folder)


def test_one_whole_file_wins_over_an_index(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model")
    (folder / INDEX).write_text("stale")
    assert list(read_manifest(folder).weights) == ["model.safetensors"]


class TestRefusals:
    def test_no_safetensors(self, tmp_path: Path) -> None:
        (tmp_path / "pytorch_model.bin").write_bytes(b"")
        with pytest.raises(UnsupportedModel) as caught:
            read_manifest(tmp_path)
        assert caught.value.remedy

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError):
            read_manifest(tmp_path / "absent")

    @pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", ".hidden",
                                      "a\\b.safetensors", "a\n.safetensors", "weights.bin"])  # fmt: skip
    def test_shards_that_are_not_bare_names(self, tmp_path: Path, name: str) -> None:
        folder = write_model_folder(tmp_path / "model", sharded=True)
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"]["embed.weight"] = name
        (folder / INDEX).write_text(json.dumps(index))
        with pytest.raises(UnsafeFile):
            read_manifest(folder)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}',
                                      '{"weight_map": []}', "[" * 100_000])  # fmt: skip
    def test_malformed_index(self, tmp_path: Path, text: str) -> None:
        folder = write_model_folder(tmp_path / "model", sharded=True)
        (folder / INDEX).write_text(text)
        with pytest.raises(UnsafeFile):
            read_manifest(folder)

    def test_index_that_disagrees_with_the_shards(self, tmp_path: Path) -> None:
        folder = write_model_folder(tmp_path / "model", sharded=True)
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"].pop("embed.weight")
        (folder / INDEX).write_text(json.dumps(index))
        with pytest.raises(UnsafeFile, match=r"embed\.weight"):
            read_manifest(folder)

    def test_a_tensor_in_two_shards(self, tmp_path: Path) -> None:
        folder = write_model_folder(tmp_path / "model", sharded=True)
        both = {"x": ("U8", (1,), b"1")}
        for name in ("a.safetensors", "b.safetensors"):
            (folder / name).write_bytes(safetensors_bytes(both if name == "a.safetensors" else both | {"y": both["x"]}))
        (folder / INDEX).write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
        with pytest.raises(UnsafeFile):
            read_manifest(folder)

    def test_linked_weights_as_in_a_hub_cache(self, tmp_path: Path) -> None:
        folder = write_model_folder(tmp_path / "model")
        (folder / "model.safetensors").rename(tmp_path / "blob")
        (folder / "model.safetensors").symlink_to(tmp_path / "blob")
        with pytest.raises(UnsafeFile) as caught:
            read_manifest(folder)
        assert "copy" in str(caught.value.remedy)

    @pytest.mark.parametrize("path, value", [(("others", "../x"), "sha256:" + "0" * 64), (("others", "x"), "md5:0"),
                                             (("tensors", "embed.weight"), {}), (("weights",), {})])  # fmt: skip
    def test_a_crafted_stored_manifest(self, tmp_path: Path, path: tuple[str, ...], value: object) -> None:
        crafted = json.loads(read_manifest(write_model_folder(tmp_path / "model")).to_json())
        place = crafted
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(UnsafeFile):
            Manifest.from_json(json.dumps(crafted))


class TestCheckCheckpoint:
    def test_an_untouched_folder_has_no_differences(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        (folder / "extra.json").write_text("{}")
        assert check_checkpoint(folder, manifest, {}) == []

    def test_each_kind_of_change_is_named(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        record = manifest.tensors["h.1.mlp.weight"]
        with (folder / record.file).open("r+b") as file:
            file.seek(record.start)
            byte = file.read(1)
            file.seek(record.start)
            file.write(bytes([byte[0] ^ 1]))
        (folder / "config.json").write_text("{}")
        (folder / "tokenizer.json").unlink()
        differences = check_checkpoint(folder, manifest, {})
        assert len(differences) == 3
        assert all(
            any(word in difference for difference in differences)
            for word in ("tensor h.1.mlp.weight", "config.json was changed", "tokenizer.json is missing")
        )

    def test_a_state_overrides_the_manifest(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        differences = check_checkpoint(folder, manifest, {"h.0.mlp.weight": digest_bytes(b"edited")})
        assert len(differences) == 1
        assert "h.0.mlp.weight" in differences[0]

    def test_header_size_and_links(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        path = folder / manifest.tensors["embed.weight"].file
        sound = path.read_bytes()
        path.write_bytes(sound.replace(b"embed.weight", b"embed.weighs"))
        assert check_checkpoint(folder, manifest, {}) == [f"the header of {path.name} was changed"]
        path.write_bytes(sound[:-1])
        assert check_checkpoint(folder, manifest, {}) == [
            f"{path.name} has {len(sound) - 1} bytes, expected {len(sound)}"
        ]
        path.unlink()
        path.symlink_to("/dev/zero")
        assert "is a link" in check_checkpoint(folder, manifest, {})[0]
        path.unlink()
        assert "cannot be read" in check_checkpoint(folder, manifest, {})[0]
