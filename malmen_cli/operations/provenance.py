"""Where an exported checkpoint comes from: `malmen.json` for programs, a model card for people. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from malmen_cli import __version__
from malmen_cli.checkpoint.digests import digest_json, short
from malmen_cli.facts import Fact, printable
from malmen_cli.ledger import FactRef, ModelRecord, active_digest
from malmen_cli.methods.registry import METHODS
from malmen_cli.operations.layers import TensorLayer, layers_of

ExportKind = Literal["full", "delta", "lora"]

PROVENANCE, CARD = "malmen.json", "README.md"
FORMAT = 1
LISTED = 5
"""Facts that a model card lists."""

_AUTO_CLASSES = {"causal": "CausalLM", "sequence-to-sequence": "Seq2SeqLM", "classification": "SequenceClassification"}
_REPOSITORY, _REVISION = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII), re.compile(r"[\w./-]+", re.ASCII)


def provenance(
    model: ModelRecord,
    *,
    entry: str | None,
    editor: str | None,
    active: Mapping[str, FactRef],
    tensors: Mapping[str, str],
    layers: Iterable[TensorLayer] = (),
    kind: ExportKind = "full",
    method: str = "malmen",
    origin: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What an edited state is and what it was made from, by digests; the schema only ever grows.

    Args:
        entry: id of the entry whose state it is; None for one that no entry made. active: its facts, by prompt.
        tensors: digests of the tensors after the edit; those that are as in the base are left out.
        layers: layers besides those of the registration, for the orientation of their tensors.
        method: the editor's. origin: where the base came from, as its register entry says.
    """
    known = {layer.tensor: layer for layer in [*layers_of(model.architecture), *layers]}
    edited = {}
    for name, after in sorted(tensors.items()):
        record = model.manifest.tensors[name]
        if after != record.digest:
            layer = known.get(name)
            edited[name] = {
                "before": record.digest,
                "after": after,
                "dtype": record.dtype,
                "shape": list(record.shape),
                "module": None if layer is None else layer.name,
                "orientation": None if layer is None else "d_out,d_in" if layer.transposed else "d_in,d_out",
            }
    repo, revision = _on_the_hub(origin or {})
    return {
        "format": FORMAT,
        "kind": kind,
        "malmen": __version__,
        "model": model.name,
        "model_type": model.architecture.get("model_type"),
        "task": model.architecture.get("task", "causal"),
        "base_digest": model.base_digest,
        "base_repo": repo,
        "base_revision": revision,
        "entry": entry,
        "editor": editor if active else None,
        "method": method if active else None,
        "active_digest": active_digest(editor, active),
        "facts": {
            "count": len(active),
            "digest": digest_json(sorted(fact.fact_digest for fact in active.values())),
        },
        "tensors": edited,
    }


def _on_the_hub(origin: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Repository and revision, of which a stranger's ledger may say anything; None for a base out of a folder."""
    repo, revision = str(origin.get("repo") or ""), str(origin.get("revision") or "")
    if not _REPOSITORY.fullmatch(repo):
        return None, None
    return repo, revision if _REVISION.fullmatch(revision) else None


def provenance_file(record: Mapping[str, Any]) -> bytes:
    """A provenance as the bytes of its JSON file."""
    return (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()


def model_card(
    record: Mapping[str, Any],
    *,
    facts: Sequence[Fact] = (),
    scores: Mapping[str, Any] | None = None,
) -> str:
    """The README.md of an export, in Markdown; fact text stands in a code block, where nothing in it is markup.

    Args:
        record: of `provenance`. facts: active facts, of which the first few are listed.
        scores: ES, GS, LS of the entry.
    """
    kind: ExportKind = record["kind"]
    name, count, entry = record["model"], record["facts"]["count"], record["entry"]
    named = "no entry of the ledger" if entry is None else f"entry `{entry}`"
    edited = f"{count:,} edited fact{'' if count == 1 else 's'}"
    lines = [
        "---",
        f"library_name: {'peft' if kind == 'lora' else 'transformers'}",
        "tags: [malmen, knowledge-editing]",
        "---",
        "",
        f"# {name} with {edited}" if count else f"# {name}, a copy of the base",
        "",
        _what(kind, name),
        "",
        f"- base: {name}{_named_on_the_hub(record)}, digest `{record['base_digest']}`",
        f"- state: {named}, {count:,} active fact{'' if count == 1 else 's'}",
    ]
    if record["editor"] is None:
        lines.append(f"- written by malmen {record['malmen']}")
    else:
        lines += [
            f"- editor: `{record['editor']}`",
            f"- method: {_paper(record.get('method'))}, by malmen {record['malmen']}",
            f"- edited tensors: {len(record['tensors'])}, each with its digests before and after in {_details(kind)}",
        ]
    if "rank" in record:
        lines.append(f"- rank {record['rank']}, relative error of the shift {record['relative_error']:.2%} at most")
    if scores and scores.get("ES") is not None:
        parts = [f"{key} {scores[key]:.3f}" for key in ("ES", "GS", "LS") if scores.get(key) is not None]
        of_what = ", of the whole shift and not of this adapter" if kind == "lora" else ""
        lines.append(f"- scores of the entry's facts when it was applied{of_what}: {', '.join(parts)}")
    if facts:
        listed = [f"    {printable(fact.prompt)} -> {printable(fact.target)}" for fact in facts[:LISTED]]
        more = [f"    ... and {count - len(listed):,} more"] if count > len(listed) else []
        lines += ["", "## Facts", "", *listed, *more]
    if kind == "lora":
        lines += ["", "## Load", "", *_load(record)]
    lines += ["", "## Undo and verify", "", *_undo(kind, entry, count)]
    lines += ["", "## License", "", "As the base model's: an edit gives nobody other rights.", ""]
    return "\n".join(lines)


def _named_on_the_hub(record: Mapping[str, Any]) -> str:
    if record["base_repo"] is None:
        return ""
    at = "" if record["base_revision"] is None else f" at revision `{record['base_revision']}`"
    return f" (`{record['base_repo']}`{at})"


def _load(record: Mapping[str, Any]) -> list[str]:
    """How to load an adapter, on the one model that it is for."""
    name, repo, revision = record["model"], record["base_repo"], record["base_revision"]
    auto = f"AutoModelFor{_AUTO_CLASSES[record['task']]}"
    arguments = '"BASE"' if repo is None else f'"{repo}"' + ("" if revision is None else f', revision="{revision}"')
    lines = [
        "Load it on the unedited base, the model of the digest above: on the edited checkpoint, as which the workspace",
        f"that made it may hold {name}, the edit would come twice.",
        "",
        "    from peft import PeftModel",
        f"    from transformers import {auto}",
        "",
        f"    base = {auto}.from_pretrained({arguments})",
        '    model = PeftModel.from_pretrained(base, "ADAPTER")',
        "",
    ]
    if repo is None:
        lines.append("`ADAPTER` is this folder, and `BASE` one with the base's files. In the workspace that made this:")
    else:
        lines.append("`ADAPTER` is this folder. In the workspace that made it the base can be had without the hub:")
    return [*lines, "", f"    malmen export base --model {name} --output BASE"]


def _paper(method: str | None) -> str:
    return METHODS["malmen" if method is None else method].paper


def _what(kind: ExportKind, name: str) -> str:
    if kind == "full":
        return "A whole checkpoint: load it as you load the base."
    if kind == "delta":
        return (
            f"The difference to the base, tensor by tensor: add `delta.safetensors` to the weights of {name} and round "
            "to their dtype, and they have the digests that `delta.json` says."
        )
    return f"A LoRA adapter for {name}: the edit as low-rank matrices, to be loaded with `peft`."


def _details(kind: ExportKind) -> str:
    return "`delta.json`" if kind == "delta" else f"`{PROVENANCE}`"


def _undo(kind: ExportKind, entry: str | None, count: int) -> list[str]:
    undo = {
        "full": "Use the base again; this folder is a copy, and changing it changes nothing else.",
        "delta": "Use the base again; it holds every byte as it was.",
        "lora": "Load the base without the adapter.",
    }[kind]
    if entry is None or not count:
        return [undo]
    named = short(entry)
    return [
        f"{undo} In the workspace that made it:",
        "",
        f"    malmen show {named}      # what this state's entry did",
        f"    malmen diff base {named}    # what it changed in all: facts and tensors",
        "    malmen revert ID            # take an entry's facts out of the working checkpoint",
        "    malmen verify               # reread ledger, objects and checkpoint",
    ]
