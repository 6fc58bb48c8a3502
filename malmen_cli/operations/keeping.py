"""Keeping an editor in the workspace, and naming it before it is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from malmen_cli.checkpoint.digests import digest_bytes, digest_json, short
from malmen_cli.checkpoint.durable import fsync_folder, in_words, write_durably
from malmen_cli.checkpoint.safetensors_file import open_regular
from malmen_cli.errors import UnsafeFile, UsageError, WrongBase
from malmen_cli.ledger import (
    EditorRecord,
    Ledger,
    ModelRecord,
    add_editor,
    check_editor,
    editor_digest_of,
    renew_editor,
    store,
)
from malmen_cli.operations.editors import DESCRIPTION, DESCRIPTION_LIMIT, TENSORS
from malmen_cli.operations.layers import TensorLayer, all_layers, layers_of


def chosen_layers(ledger: Ledger, model: ModelRecord, globs: Sequence[str] | None) -> list[TensorLayer]:
    """The layers that an editor is to edit: those of the registration, or those that globs over module paths name.

    Raises:
        UnsupportedModel: layers that cannot be edited.
    """
    if globs is None:
        return layers_of(model.architecture)
    from malmen_cli.language_models.language_model import LanguageModel
    from malmen_cli.operations.matching import match_tensor, stored_dtype_of

    with ledger.read() as db:
        # Layers are matched with the files' tensors by value; those that may be edited now have been matched before.
        known = {layer.name: layer for layer in all_layers(db, model)}
    language_model = LanguageModel(model.path, layers=globs, dtype=stored_dtype_of(model.manifest))
    language_model.require_usable()
    return [known.get(layer.name) or match_tensor(model.manifest, layer) for layer in language_model.layers]


def unkept(model: ModelRecord, files: Mapping[str, bytes]) -> EditorRecord:
    """The record of an editor that is in no ledger, as keeping it would make it but for when.

    Its id is the digest of what it is (tensors, base, layers, settings, model), not of how it came to be: but for the
    running text, since an editor is asked for by that too, and two texts may begin alike and give the same tensors.
    """
    description = json.loads(files[DESCRIPTION])
    identity = {name: description[name] for name in ("base", "layers", "config")} | {"model": model.name}
    training = description["training"]
    if "text" in training:
        identity["text"] = training["text"]
    history = (record for record in training.get("history", ()) if record.get("step") == training.get("best_step"))
    scores: dict[str, Any] = {**next(history, {}), **({"rows": training["rows"]} if "rows" in training else {})}
    if "made" in training:  # of a method without training
        made_from = {"calibrated_on": training.get("facts"), "text": training.get("text")}
        scores = {name: value for name, value in made_from.items() if value is not None}
    return EditorRecord(
        id=short(digest_json([identity, digest_bytes(files[TENSORS])])),
        model_id=model.id,
        digest="",
        created_at="",
        per_fact=description["per_fact"],
        config={name: description[name] for name in ("layers", "config")},
        scores=scores,
    )


def keep_editor(ledger: Ledger, model: ModelRecord, files: Mapping[str, bytes]) -> EditorRecord:
    """Put an editor's folder in place in one step, then its row. Making the same one again finds that which is there.

    Where its files are lost or damaged they are put back as they were recorded, if they can be had so: the description
    tells of the making, seconds and all. If not, they are recorded anew; but where entries name the editor, whose ids
    cover its record, the new one is kept beside it under an id of its own.

    Raises:
        MalmenError: the disk does not take it, or does not let the one that is there be read.
    """
    new = unkept(model, files)
    with ledger.read() as db:
        there = {editor.id: editor for editor in store.editors(db, model.id)}
        in_use = {entry.editor_id for entry in store.entries(db, model.id)}
    while (known := there.get(new.id)) is not None:
        if not _is_damaged(ledger, known):
            return known
        recorded = _as_recorded(ledger, known, files)
        if new.id not in in_use or editor_digest_of(recorded) == known.digest:
            files = recorded
            break
        new = replace(new, id=short(digest_json([new.id, known.digest])))
    final = ledger.workspace.editors / new.id
    if known is not None or not final.exists():
        temporary = _unfinished(final)
        with in_words(final):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            for name, data in files.items():
                write_durably(temporary / name, data)
            _remove(final)  # only now: it may hold the one copy of what was recorded
            temporary.rename(final)
    fsync_folder(final.parent)  # whoever put it there may have been killed before this
    if known is not None:
        return renew_editor(ledger, known)
    return add_editor(ledger, model, new.id, per_fact=new.per_fact, config=new.config, scores=new.scores)


def _is_damaged(ledger: Ledger, editor: EditorRecord) -> bool:
    """Whether an editor's files are lost or others. Raises UsageError where that cannot be told now."""
    try:
        check_editor(ledger, editor)
    except (WrongBase, UnsafeFile):
        return True
    except UsageError as error:
        if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
            return True
        raise
    return False


def _as_recorded(ledger: Ledger, editor: EditorRecord, files: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """An editor's files made again, with the description that still lies there if it is the one that was recorded: in
    its folder, or in what a killed command was about to put in its place."""
    folder = ledger.workspace.editors / editor.id
    for place in (folder, _unfinished(folder)):
        try:
            with open_regular(place / DESCRIPTION) as file:
                there = {**files, DESCRIPTION: file.read(DESCRIPTION_LIMIT)}
        except (OSError, UnsafeFile):
            continue
        if editor_digest_of(there) == editor.digest:
            return there
    return files


def _unfinished(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.part")


def _remove(path: Path) -> None:
    """A damaged editor: its folder, or whatever is in that place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
