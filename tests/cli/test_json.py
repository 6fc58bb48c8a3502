"""`--json` is one document on stdout with the keys that scripts rely on, and `-q` prints ids, for every verb.

The tables below are the promise: keys may be added, but none of these may go, or change its type.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from program import Verb, options, run_here, verbs
from tiny_models import make_fact, make_facts, make_world, save_tiny_model, write_facts

from malmen_cli.cli.output import print_json
from malmen_cli.errors import ExitCode
from malmen_cli.ledger import create_workspace

TEXT, NUMBER, COUNT, YES_NO, ANY = str, (int, float), int, bool, object
MAYBE_TEXT, MAYBE_NUMBER, MAYBE_COUNT = (str, type(None)), (int, float, type(None)), (int, type(None))

SCORES = {"ES": MAYBE_NUMBER, "GS": MAYBE_NUMBER, "LS": MAYBE_NUMBER}
CHECK = {
    "before": SCORES,
    "after": SCORES,
    "checked_old": COUNT,
    "old_ES": MAYBE_NUMBER,
    "still_wrong": COUNT,
    "wrong": [{"prompt": TEXT, "target": TEXT, "answer": TEXT, "new": YES_NO}],
    "answers": [{"prompt": TEXT, "target": TEXT, "before": TEXT, "after": TEXT}],
}
ENTRY = {
    **dict.fromkeys(("id", "short", "kind", "status", "model", "active_digest", "created_at", "command"), TEXT),
    **dict.fromkeys(("parent", "target", "editor", "fact_set", "source"), MAYBE_TEXT),
    "number": COUNT,
    "head": YES_NO,
    "details": {"malmen": TEXT},
}
DELTA = {
    **{"tensor": TEXT, "before": TEXT, "after": TEXT},
    **dict.fromkeys(("norm", "relative_norm", "largest_change", "effective_rank", "share_moved"), MAYBE_NUMBER),
    **dict.fromkeys(("rounding_loss", "ridge", "step_size"), MAYBE_NUMBER),
}
MODEL = {
    **dict.fromkeys(("name", "path", "base_digest", "model_type", "task", "dtype", "head", "created_at"), TEXT),
    "layers": [{"name": TEXT, "tensor": TEXT, "d_in": COUNT, "d_out": COUNT, "transposed": YES_NO}],
    "active_facts": COUNT,
    "editors": [{"id": TEXT, "created_at": TEXT, "per_fact": YES_NO, "config": dict, "scores": dict}],
    "origin": ANY,
}
FAMILY = {
    **dict.fromkeys(("name", "model_type", "task", "stored", "captured", "tokenised"), TEXT),
    "edited": [TEXT],
    "blocks": COUNT,
}
SPLIT = {
    **dict.fromkeys(("name", "path", "digest", "added_at", "status"), TEXT),
    **{"format": MAYBE_TEXT, "on_conflict": MAYBE_TEXT, "facts": COUNT},
}
APPLIED = {
    "model": TEXT,
    "editor": TEXT,
    **dict.fromkeys(("duplicates", "conflicts_dropped", "new", "already_active", "superseded", "active"), COUNT),
    "output": MAYBE_TEXT,
    "warnings": [TEXT],
}
STATE = {"name": TEXT, "entry": TEXT, "number": COUNT, "active_facts": COUNT}
SCORE = {"value": NUMBER, "low": NUMBER, "high": NUMBER}
MAYBE_SCORE = (dict, type(None))
BOTH_WAYS = {"teacher_forced": MAYBE_SCORE, "generated": MAYBE_SCORE}
SIX_SCORES = {
    **dict.fromkeys(("reliability", "generalisation", "locality"), BOTH_WAYS),
    "harmonic_mean": SCORE,
}
CHANGE = {"before": MAYBE_SCORE, "after": MAYBE_SCORE}
OF_EDITS = {"edit": CHANGE, "rephrase": CHANGE}
MEASURES = {
    **{name: {**OF_EDITS, "unrelated": CHANGE} for name in ("teacher_forced", "exact_match", "contains")},
    **dict.fromkeys(("new_probability", "old_probability", "new_over_old"), OF_EDITS),
    "unchanged": BOTH_WAYS,
}
GROUP = {"name": TEXT, "facts": COUNT, "six_scores": SIX_SCORES}
PER_KIND = {"edit": MAYBE_NUMBER, "rephrase": MAYBE_NUMBER, "unrelated": MAYBE_NUMBER}
EVALUATED = {
    **dict.fromkeys(("model", "base", "source"), TEXT),
    **{"editor": MAYBE_TEXT, "n_edits": MAYBE_COUNT, "seed": MAYBE_COUNT, "generate": YES_NO},
    **dict.fromkeys(("available", "scored", "edited"), COUNT),
    "asked": PER_KIND,
    "left_out": PER_KIND,
    "before": {**SCORES, "generated": PER_KIND, "cut_off": PER_KIND},
    "after": {**SCORES, "generated": PER_KIND, "cut_off": PER_KIND},
    "unchanged": {"teacher_forced": MAYBE_NUMBER, "generated": MAYBE_NUMBER},
    "facts": [{"number": COUNT, "digest": TEXT, "prompt": TEXT, "target": TEXT, "edit": dict, "rephrases": list}],
    "not_in_effect": list,
    "warnings": [TEXT],
    "evaluation": MAYBE_TEXT,
    "six_scores": SIX_SCORES,
    "measures": MEASURES,
    "groups": {"tag": [GROUP], "template": [GROUP], "target": [GROUP]},
    "overlap": {**dict.fromkeys(("same_prompt", "left_out", "same_subject", "same_unrelated_prompts"), COUNT)},
    "overlap_option": TEXT,
    "drift": ANY,
}
KEPT = {
    **dict.fromkeys(("id", "short", "model", "facts_digest", "created_at", "command"), TEXT),
    **{"entry": MAYBE_TEXT, "editor": MAYBE_TEXT, "source": MAYBE_TEXT, "scored": COUNT},
    "details": {"scores": {"six_scores": SIX_SCORES}, "versions": dict},
}
COLLECTED = {
    "dry_run": YES_NO,
    "items": [{"scope": TEXT, "name": TEXT, "what": TEXT, "bytes": COUNT}],
    "bytes": COUNT,
    "kept": [TEXT],
}

# A session: each line leaves what the next one needs. FILE etc. are filled in below.
SESSION: list[tuple[str, Any]] = [
    ("data add FEW FILE", SPLIT),
    ("data list", [SPLIT]),
    (
        "plan FILE",
        {
            **dict.fromkeys(("model", "base", "head", "editor", "source", "active_digest"), TEXT),
            **dict.fromkeys(("in_file", "duplicates", "conflicts_dropped", "new", "already_active", "active"), COUNT),
            "superseded": list,
            "already_known": COUNT,
            "ES_before": MAYBE_NUMBER,
            "facts": [{"prompt": TEXT, "target": TEXT, "known": YES_NO, "residual": NUMBER, "leverage": NUMBER}],
            "prediction": {"seconds": NUMBER, "memory": COUNT, "disk": COUNT, "temporary": COUNT},
            "warnings": [TEXT],
        },
    ),
    ("apply FILE", {**APPLIED, "entry": ENTRY, "check": CHECK}),
    ("apply --split FEW", {**APPLIED, "entry": type(None), "check": type(None)}),
    ("apply MORE --dry-run", {**APPLIED, "entry": type(None), "check": CHECK}),
    ("apply MORE", {**APPLIED, "entry": ENTRY, "check": CHECK}),
    ("log", [ENTRY]),
    (
        "show",
        {
            **ENTRY,
            "facts": [{"number": COUNT, "digest": TEXT, "prompt": TEXT, "target": TEXT, "in_effect": YES_NO}],
            "parameter_deltas": [DELTA],
            "on_disk": {"tensors": COUNT, "rows": COUNT, "shared": COUNT, "dropped": COUNT},
        },
    ),
    ("models list", [MODEL]),
    ("models families", [FAMILY]),
    ("models show", MODEL),
    (
        "diff HEAD~1 HEAD --predictions",
        {
            "model": TEXT,
            **{"a": STATE, "b": STATE, "differs": YES_NO, "pending": ANY},
            "facts": {"added": list, "removed": list, "superseded": list, "common": COUNT},
            "tensors": [
                {"tensor": TEXT, "before": TEXT, "after": TEXT, "singular_values": [NUMBER], "note": MAYBE_TEXT}
            ],
            "predictions": {"asked": COUNT, "changed": COUNT, "answers": list},
        },
    ),
    ("eval FILE", {**EVALUATED, "entry": type(None)}),
    ("eval HEAD", {**EVALUATED, "entry": ENTRY, "others": {"active": COUNT, "asked": COUNT}}),
    ("eval --list", [KEPT]),
    (
        "export --output OUT",
        {
            **dict.fromkeys(("model", "entry", "kind", "output"), TEXT),
            **{"number": COUNT, "active_facts": COUNT, "rank": MAYBE_COUNT, "relative_error": MAYBE_NUMBER},
            "provenance": {"base_digest": TEXT, "active_digest": TEXT, "tensors": dict},
            "warnings": [TEXT],
        },
    ),
    (
        "verify",
        {
            **{"sound": YES_NO, "checked": dict, "problems": [{"where": TEXT, "what": TEXT}]},
            **{"quick": YES_NO, "anchor": TEXT},
        },
    ),
    (
        "recover",
        [
            {
                **{
                    "model": TEXT,
                    "settled": ANY,
                    "leftovers": list,
                    "restored": [TEXT],
                    "kept": list,
                    "differences": [TEXT],
                },
                "error": MAYBE_TEXT,
            }
        ],
    ),
    ("gc --states --dry-run", COLLECTED),
    ("gc --states --yes", COLLECTED),
    (
        "revert HEAD",
        {"entry": ENTRY, "target": TEXT, "removed": [TEXT], "revived": [TEXT], "active": COUNT, "from": TEXT},
    ),
    (
        "train TRAINING --config SETTINGS",
        {
            **{"editor": TEXT, "model": TEXT, "seconds": NUMBER, "history": [dict], "config": dict},
            **dict.fromkeys(("rows", "held_out", "dropped_prompts", "steps", "best_step", "facts_seen"), COUNT),
        },
    ),
    (
        "rebase --editor NEW",
        {
            **{"entry": ENTRY, "model": TEXT, "editor": TEXT, "former_editor": TEXT, "active": COUNT},
            **{"restored": list, "check": CHECK, "warnings": [TEXT]},
        },
    ),
]

# What `-q` prints a line of, after that session.
QUIET = {
    "log": r"sha256:[0-9a-f]{64}",
    "show": r"sha256:[0-9a-f]{64}",
    "revert HEAD~1": r"sha256:[0-9a-f]{64}",
    "plan OTHER --quick": r"sha256:[0-9a-f]{64}",
    "apply OTHER": r"sha256:[0-9a-f]{64}",
    "models list": "tiny",
    "models families": r"\w+",
    "models show": "tiny",
    "data list": "FEW",
    "diff base HEAD": r"transformer\.h\.\d\.mlp\.c_proj\.weight",
    "export --output OUT2": r"sha256:[0-9a-f]{64}",
    "verify": None,
    "recover": None,
    "gc --states --yes": r"sha256:[0-9a-f]{64}",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    write_facts(folder / "FILE", make_facts(3))
    write_facts(folder / "MORE", [make_fact(1, "Oslo"), make_fact(5)])
    write_facts(folder / "OTHER", make_facts(2, start=20))
    write_facts(folder / "TRAINING", make_facts(24, start=4000))
    settings = {"steps": 2, "editor": {"rank": 4, "blocks": 1}, "facts_per_step": 8, "batch_tokens": 512}
    (folder / "SETTINGS").write_text(json.dumps(settings | {"held_out": 0.2}))
    return folder


def arguments(line: str, folder: Path) -> list[str]:
    return [str(folder / w) if re.fullmatch("(?!HEAD|FEW|NEW)[A-Z2]+", w) else w for w in line.split()]


def where(line: str, folder: Path) -> list[str]:
    """The workspace, for verbs that work in one."""
    return ["--workspace", str(folder)] if "--workspace" in options(verb_of(line)) else []


def lacking(value: Any, promise: Any, where: str = "") -> Iterator[str]:
    """What a value lacks of a promise: a type, several, {key: promise} or [promise of every item]."""
    if isinstance(promise, dict):
        if not isinstance(value, dict):
            yield f"{where} is {value!r}"
            return
        for key, inner in promise.items():
            if key not in value:
                yield f"{where}.{key} is not there"
            else:
                yield from lacking(value[key], inner, f"{where}.{key}")
    elif isinstance(promise, list):
        if not isinstance(value, list):
            yield f"{where} is {value!r}"
            return
        for i, item in enumerate(value):
            yield from lacking(item, promise[0], f"{where}[{i}]")
    elif not isinstance(value, promise) or (promise is COUNT and isinstance(value, bool)):
        yield f"{where} is {value!r}"


class TestSession:
    @pytest.mark.parametrize(("line", "promise"), SESSION, ids=[line for line, _ in SESSION])
    def test_json(self, capfd: pytest.CaptureFixture[str], folder: Path, line: str, promise: Any) -> None:
        words = arguments(line, folder)
        if "NEW" in words:
            words[words.index("NEW")] = self.newest_editor(capfd, folder)
        status, out, err = run_here(capfd, *words, "--json", *where(line, folder))
        assert status in (ExitCode.DONE, ExitCode.FACTS_FAILED_CHECK), err
        assert list(lacking(json.loads(out), promise)) == []
        assert out.isascii()

    @pytest.mark.parametrize(("line", "word"), QUIET.items(), ids=list(QUIET))
    def test_quiet(self, capfd: pytest.CaptureFixture[str], folder: Path, line: str, word: str | None) -> None:
        status, out, err = run_here(capfd, *arguments(line, folder), "-q", *where(line, folder))
        assert status in (ExitCode.DONE, ExitCode.FACTS_FAILED_CHECK), err
        assert bool(out) == (word is not None)
        assert all(re.fullmatch(word or "", line) for line in out.splitlines())

    @staticmethod
    def newest_editor(capfd: pytest.CaptureFixture[str], folder: Path) -> str:
        _, out, _ = run_here(capfd, "models", "show", "--json", "--workspace", folder)
        return str(json.loads(out)["editors"][0]["id"])


def test_what_is_registered_is_shown(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """In a session of its own: with two models the other verbs would have to name one."""
    workspace = create_workspace(tmp_path)
    for name in ("one", "two"):
        save_tiny_model(tmp_path / name)
        status, out, err = run_here(
            capfd, "models", "add", name, tmp_path / name, "--json", "--workspace", workspace.root
        )
        assert status == ExitCode.DONE, err
        assert list(lacking(json.loads(out), MODEL)) == [] and json.loads(out)["name"] == name
    status, out, err = run_here(capfd, "models", "show", "--workspace", workspace.root)
    assert (status, out) == (ExitCode.USAGE, "")
    assert err == "malmen: 2 models are registered\n  Name one: malmen models show NAME.\n"


def test_no_verb_escapes() -> None:
    """Every verb with --json is in the session; every one with -q is tried, here or where it is at home."""
    shown = {verb_of(line) for line, _ in SESSION}
    assert {verb for verb in verbs() if "--json" in options(verb)} <= shown | {("models", "add")}
    # train, eval, rebase and the verbs that name something are slow or say their own name: they are tried elsewhere.
    elsewhere: set[Verb] = {("train",), ("eval",), ("rebase",), ("data", "add"), ("data", "remove")}
    elsewhere |= {("models", "add"), ("models", "move")}
    assert {verb for verb in verbs() if "-q" in options(verb)} <= {verb_of(line) for line in QUIET} | elsewhere


def verb_of(line: str) -> Verb:
    words = line.split()
    return tuple(words[:2]) if tuple(words[:2]) in verbs() else tuple(words[:1])


def test_numbers_that_json_has_no_words_for_are_null(capfd: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [float("inf"), (float("nan"), 1.5)], "b": True})
    assert json.loads(capfd.readouterr().out) == {"a": [None, [None, 1.5]], "b": True}


def test_the_check_of_promises_finds_what_is_lacking() -> None:
    promise = {"a": TEXT, "b": [COUNT], "c": {"d": MAYBE_NUMBER}}
    assert not list(lacking({"a": "x", "b": [1], "c": {"d": None}, "more": 1}, promise))
    assert len(list(lacking({"a": 1, "b": [True, "x"], "c": {}}, promise))) == 4
