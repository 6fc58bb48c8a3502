"""R8: an editor that a stranger made, or made up, is refused before a row is captured or solved with it.

Whoever changes an editor's files changes its digest in the ledger too, here: the files themselves are what is judged.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from refusal_world import RefusalWorld, flip
from refusals import Case, Prepare
from safetensors.torch import load_file, save_file
from torch import Tensor

from malmen_cli.errors import ExitCode
from malmen_cli.ledger.registration import editor_digest

USING = (
    "apply",
    "apply --plan",
    "apply --output",
    "apply --dry-run",
    "revert HEAD~1",
    "revert --fact",
    "rebase",
    "plan",
    "eval",
)
"""Commands that load an editor. Reverting the newest entry needs none."""

DESCRIPTION, TENSORS = "editor.json", "editor.safetensors"


def every_editor(change: Callable[[Path], object], *, recorded: bool = True) -> Prepare:
    def prepare(world: RefusalWorld) -> None:
        for folder in sorted((world.workspace / "editors").iterdir()):
            change(folder)
            if recorded:
                with world.database() as db:
                    db.execute("UPDATE editors SET digest = ? WHERE id = ?", (editor_digest(folder), folder.name))

    return prepare


def described(**values: object) -> Prepare:
    """`config.rank=2` is written `config__rank`."""

    def change(folder: Path) -> None:
        said = json.loads((folder / DESCRIPTION).read_text())
        for name, value in values.items():
            *path, last = name.split("__")
            place = said
            for key in path:
                place = place[int(key) if key.isdecimal() else key]
            place[last] = value
        (folder / DESCRIPTION).write_text(json.dumps(said))

    return every_editor(change)


def description(text: str) -> Prepare:
    return every_editor(lambda folder: (folder / DESCRIPTION).write_text(text))


def without(key: str) -> Prepare:
    def change(folder: Path) -> None:
        said = json.loads((folder / DESCRIPTION).read_text())
        del said[key]
        (folder / DESCRIPTION).write_text(json.dumps(said))

    return every_editor(change)


def tensors(change: Callable[[dict[str, Tensor]], object]) -> Prepare:
    def in_folder(folder: Path) -> None:
        held = load_file(folder / TENSORS)
        change(held)
        save_file({name: tensor.contiguous() for name, tensor in held.items()}, folder / TENSORS)

    return every_editor(in_folder)


def first(held: dict[str, Tensor], ending: str) -> str:
    return next(name for name in sorted(held) if name.endswith(ending))


def put(ending: str, value: Callable[[Tensor], Tensor]) -> Prepare:
    def change(held: dict[str, Tensor]) -> None:
        name = first(held, ending)
        held[name] = value(held[name])

    return tensors(change)


def filled(ending: str, number: float) -> Prepare:
    def fill(tensor: Tensor) -> Tensor:
        tensor.view(-1)[0] = number
        return tensor

    return put(ending, fill)


def drop(ending: str) -> Prepare:
    return tensors(lambda held: held.pop(first(held, ending)))


def file(name: str, make: Callable[[Path], object]) -> Prepare:
    """Something else in place of an editor's file, which the ledger still says it has."""

    def change(folder: Path) -> None:
        moved = folder.parent.parent.parent / f"{folder.name}-{name}"
        (folder / name).rename(moved)
        make(folder / name)

    return every_editor(change, recorded=False)


def linked(path: Path) -> None:
    path.symlink_to(path.parents[3] / f"{path.parent.name}-{path.name}")


def folder_linked(folder: Path) -> None:
    moved = folder.parent.parent.parent / f"moved-{folder.name}"
    folder.rename(moved)
    folder.symlink_to(moved)


def case(name: str, prepare: Prepare, words: str, code: ExitCode = ExitCode.USAGE) -> Case:
    return Case(name, prepare, USING, code, words)


def base(name: str, prepare: Prepare, words: str) -> Case:
    return case(name, prepare, words, ExitCode.WRONG_BASE)


ZEROS = "sha256:" + "0" * 64
DEEP = '{"a": ' + "[" * 99_999 + "]" * 99_999 + "}"
KINDS = (".A", ".B", "raw_step_size", "log_ridge", "log_strength", "strength_power")
KINDS += ("normalizer.0.mean", "normalizer.0.variance", "preserved.0.keys")


def is_number(name: str) -> bool:
    return not name.endswith("count")


CASES = [
    base("another base", described(base=ZEROS), "another base"),
    base("a layer that the model has not", described(layers__0__tensor="transformer.h.9.weight"), "has no tensor"),
    base("a layer of another shape", described(layers__0__d_in=5), "of shape"),
    base("a layer the other way round", described(layers__0__transposed=True), "of shape"),
    base(
        "a layer's tensor that is not its module's", described(layers__0__tensor="lm_head.weight"), "has no tensor|of"
    ),
    case("the same layer twice", described(layers__1__name="transformer.h.1.mlp.c_proj"), "malformed"),
    case("layers of the wrong types", described(layers__0__d_in="wide"), "malformed"),
    case("a layer with an unknown key", described(layers__0__extra=1), "malformed"),
    case("no layers", described(layers=[]), "malformed"),
    case("layers that are no list", described(layers=7), "malformed|damaged"),
    case("an unknown key", described(extra=1), "does not hold just"),
    case("an unknown setting", described(config__extra=1), "extra"),
    case("a setting of the wrong type", described(config__editor__rank="large"), "rank"),
    case("a huge rank", described(config__editor__rank=65_536), "disagree about its size"),
    case("an impossible rank", described(config__editor__rank=1 << 40), "rank"),
    case("more blocks than there are", described(config__editor__blocks=1_000), "disagree about its size"),
    case("another step size", described(config__editor__step_size="cubic"), "step_size"),
    case("another format version", described(format=2), "format"),
    case("no format version", without("format"), "does not hold just"),
    case("no base", without("base"), "does not hold just"),
    case("no settings", without("config"), "does not hold just"),
    case("a set that it cannot be an editor of", described(per_fact=False), "of its rows what its method does"),
    case("a description that is no JSON", description("{"), "is damaged"),
    case("a description that is no table", description("[]"), "is damaged"),
    case("a description with infinities", described(config__clip=float("inf")), "clip|finite"),
    case("a description nested too deeply", description(DEEP), "is damaged"),
    case("a description that is huge", description("{" + " " * (17 << 20) + "}"), "too large"),
    case(
        "a description that is no text", every_editor(lambda f: (f / DESCRIPTION).write_bytes(b"\xff\xfe")), "damaged"
    ),
    case("tensors that are no safetensors", every_editor(lambda f: (f / TENSORS).write_bytes(b"PK\3\4")), "is damaged"),
    case("tensors that are a pickle", every_editor(lambda f: (f / TENSORS).write_bytes(b"\x80\4.")), "is damaged"),
    case("tensors cut short", every_editor(lambda f: os.truncate(f / TENSORS, 900)), "is damaged"),
    case("an unknown tensor", tensors(lambda held: held.setdefault("strange", torch.zeros(3))), "unknown tensors"),
    case("no tensors", tensors(dict.clear), "is damaged|disagree about its size"),
    case("keys preserved without their count", drop("preserved.0.count"), "missing tensors"),
    case("a count of none", put("normalizer.0.count", torch.zeros_like), "wanted at least 1"),
    case("a negative count", put("preserved.0.count", lambda t: t - 1_000_000), "wanted at least 1"),
    *(case(f"{kind} missing", drop(kind), "missing tensors|disagree") for kind in KINDS if "keys" not in kind),
    *(case(f"{kind} of another shape", put(kind, lambda t: t[..., :-1]), "wanted|disagree") for kind in KINDS),
    *(case(f"{kind} of another dimension", put(kind, lambda t: t[None]), "wanted|disagree") for kind in KINDS),
    *(case(f"{kind} of another dtype", put(kind, lambda t: t.to(torch.int32)), "wanted") for kind in KINDS),
    *(case(f"a NaN in {kind}", filled(kind, float("nan")), "is not finite") for kind in KINDS),
    *(case(f"an infinity in {kind}", filled(kind, float("inf")), "is not finite") for kind in KINDS),
    base("a changed bit", every_editor(lambda f: flip(f / TENSORS, -1), recorded=False), "were changed"),
    base("a changed description", every_editor(lambda f: flip(f / DESCRIPTION, 30), recorded=False), "were changed"),
    case("no folder", every_editor(shutil.rmtree, recorded=False), "does not hold an editor"),
    case("no description", every_editor(lambda f: (f / DESCRIPTION).unlink(), recorded=False), "not hold an editor"),
    case("a folder that is a link", every_editor(folder_linked, recorded=False), "is a link"),
    case("a description that is a link", file(DESCRIPTION, linked), "is a link"),
    case("tensors that are a link", file(TENSORS, linked), "is a link"),
    case("tensors that are a pipe", file(TENSORS, os.mkfifo), "not a regular file"),
    case("tensors that are a folder", file(TENSORS, Path.mkdir), "not a regular file|does not hold"),
    case("tensors that are endless", file(TENSORS, lambda path: path.symlink_to("/dev/zero")), "is a link"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_strange_editor(case: Case, refuse: Callable[[str, Case], None]) -> None:
    refuse("editors", case)


CAPTURING = ("apply", "apply --plan", "apply --output", "apply --dry-run", "rebase", "plan", "eval")
SOLVING = (*CAPTURING, "revert HEAD~1", "revert --fact")

HUGE = [
    Case("a huge .A", filled(".A", 3e38), CAPTURING, ExitCode.FAILED, "finite"),
    Case("a huge .B", filled(".B", 3e38), CAPTURING, ExitCode.FAILED, "finite"),
    Case("a huge step size", filled("raw_step_size", 3e38), CAPTURING, ExitCode.FAILED, "finite"),
    Case("a huge ridge", filled("log_ridge", 3e38), SOLVING, ExitCode.FAILED, "ridge > 0"),
    Case("no ridge at all", filled("log_ridge", -3e38), SOLVING, ExitCode.FAILED, "ridge > 0"),
    Case("a huge strength", filled("log_strength", 3e38), SOLVING, ExitCode.FAILED, "preserved strength >= 0"),
]


@pytest.mark.parametrize("case", HUGE, ids=str)
def test_an_editor_of_huge_numbers(case: Case, refuse: Callable[[str, Case], None]) -> None:
    refuse("editors", case)


def changed_row(column: str, value: Any) -> Prepare:
    def prepare(world: RefusalWorld) -> None:
        with world.database() as db:
            db.execute(f"UPDATE editors SET {column} = ?", (value,))

    return prepare


ROWS = [
    Case(f"an editor's row: {column} is {str(value)[:20]!r}", changed_row(column, value), USING, ExitCode.FAILED, words)
    for column, value, words in [
        ("digest", b"\xff", "damaged"),
        ("config", "{", "damaged"),
        ("config", "[]", "damaged"),
        ("config", '{"config": {"facts_per_step": "many"}}', "damaged"),
        ("config", DEEP, "damaged"),
        ("scores", "null", "damaged"),
        ("scores", '{"scores": {"x": {}}}', "damaged"),
        ("per_fact", "maybe", "damaged"),
        ("created_at", b"\0", "damaged"),
    ]
]


@pytest.mark.parametrize("case", ROWS, ids=str)
def test_an_editors_row_that_holds_something_else(case: Case, refuse: Callable[[str, Case], None]) -> None:
    refuse("editors", case)
