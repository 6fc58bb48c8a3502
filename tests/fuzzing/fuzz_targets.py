"""What reads bytes that a stranger may have written, each as a function of these bytes.

A target calls the product as its verbs do, returns whether the bytes were accepted, and raises nothing but a `Defect`
or whatever else escaped: both count as uncaught. What is accepted must be sane: every target checks what its reader
promises of it. No torch here (`editor_targets.py`), and no database (`damaged_ledger.py`).
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import unicodedata
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import get_args

import safetensors
from ledger_world import FAST, apply, fact, make_world, tiny
from safetensors_folders import write_model_folder

from malmen_cli.checkpoint import lock as locks
from malmen_cli.checkpoint.lock import LOCK_NAME, checkpoint_lock
from malmen_cli.checkpoint.manifest import INDEX, Manifest, check_checkpoint, read_manifest
from malmen_cli.checkpoint.safetensors_file import read_header, read_tensor
from malmen_cli.config import resolve_training
from malmen_cli.errors import BadFacts, Locked, MalmenError
from malmen_cli.facts import Fact, FactFormat, FactSet, printable, read_fact_set
from malmen_cli.ledger import Ledger, store
from malmen_cli.ledger.sidecar import SIDECAR, read_sidecar, refresh_sidecar, warning_about
from malmen_cli.ledger.training_runs import NOTE, run_model, run_words
from malmen_cli.operations.saved_plan import read_plan

SCRATCH = "MALMEN_FUZZING_SCRATCH"
Target = Callable[[bytes], bool]


class Defect(AssertionError):
    """What a reader accepted, or said, is not what it promises."""


def require(holds: object, what: str) -> None:
    """`assert`, which `python -O` would take out of the coverage-guided driver."""
    if not holds:
        raise Defect(what)


@cache
def scratch() -> Path:
    """A folder in memory for the files that targets read; it goes with the process that asked for it.

    SCRATCH names the folder it is made in where somebody else clears up: libFuzzer ends a process without a word.
    """
    folder = tempfile.TemporaryDirectory(prefix="malmen-fuzzing-", dir=os.environ.get(SCRATCH, FAST))
    _KEPT.append(folder)
    return Path(folder.name)


_KEPT: list[object] = []  # until the process ends


def placed(name: str, data: bytes) -> Path:
    """The bytes as a file."""
    path = scratch() / name
    with path.open("wb") as file:
        file.write(data)
    return path


def check_words(text: str) -> None:
    """What is shown must be text that can be encoded and obeys nothing: `printable` would leave it as it is."""
    require(printable(text, limit=None) == text, f"not fit to be shown: {text!a}")


# Facts --------------------------------------------------------------------------------------------------------------


def facts(data: bytes, format: FactFormat | None) -> bool:
    path = placed("facts", data)
    try:
        found = read_fact_set(path, format=format, on_conflict=(None, "first", "last")[len(data) % 3])
    except BadFacts as error:
        require(error.problems and error.remedy, "refused without a reason or a remedy")
        for problem in error.problems:
            check_words(problem)
        return False
    check_facts(found)
    return True


def check_facts(found: FactSet) -> None:
    """Distinct prompts, no text empty, and the same facts and digests when written in malmen's own format and read."""
    require(found.facts, "a fact set without facts")
    require(len({one.prompt for one in found}) == len(found), "two facts of one prompt")
    for one in found:
        texts = [one.prompt, one.target, *one.rephrases, *one.tags]
        texts += [text for other in one.unrelated for text in (other.prompt, other.target)]
        require(all(text and "\0" not in text for text in texts), "an empty text, or one with a NUL")
        require(one.subject != "" and one.source != "", "an empty text that should be left out")
    again = read_fact_set(placed("again", "\n".join(one.canonical_json() for one in found).encode()), format="jsonl")
    require(again.facts == found.facts, "facts that are others when they are read again")
    require(again.digest == found.digest, "a digest that does not last")


def fact_row(data: bytes) -> bool:
    """A fact as the ledger keeps it: the content of a row."""
    try:
        value = store.load_json(data.decode("utf-8", "replace"))
        found = Fact.from_json(value)
    except MalmenError:
        return False
    require(Fact.from_json(json.loads(found.canonical_json())) == found, "a fact that does not last")
    return True


def shown(data: bytes) -> bool:
    """Text from strangers on its way to a terminal. The categories are Unicode's own, not `printable`'s list."""
    text = data.decode("utf-8", "surrogateescape" if len(data) % 2 else "replace")
    limit = None if len(data) % 3 else len(data) // 2
    result = printable(text, limit)
    result.encode()
    for character in result:
        require(unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp"), f"shows {character!a}")
        require(unicodedata.bidirectional(character) not in _REORDERING, f"shows {character!a}")
    require(limit is None or len(result) <= limit, "longer than asked for")
    require(printable(result, None) == result, "escaped twice")
    return result == text


_REORDERING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


# Checkpoints --------------------------------------------------------------------------------------------------------


def header(data: bytes) -> bool:
    """Slots lie in the file one after another, and the library reads the same tensors from these bytes."""
    path = placed("model.safetensors", data)
    try:
        found = read_header(path)
    except MalmenError as error:
        check_words(printable(error.message, limit=None))
        return False
    reached = found.header_size
    for slot in found.slots.values():
        require(slot.start == reached and slot.stop >= slot.start, "a hole or an overlap")
        reached = slot.stop
    require(reached == found.file_size == len(data), "slots that do not end with the file")
    try:
        library = dict(safetensors.deserialize(data))
    except Exception as error:  # the library has errors of its own for each way to be malformed
        raise Defect(f"the library refuses what malmen accepts: {error}") from error
    ours = {name: (slot.dtype, slot.shape, read_tensor(path, slot)) for name, slot in found.slots.items()}
    theirs = {name: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for name, t in library.items()}
    require(ours == theirs, "the library reads other tensors")
    return True


@cache
def _sharded() -> Path:
    return write_model_folder(scratch() / "sharded", sharded=True)


def index(data: bytes) -> bool:
    """The index of two sound shards."""
    folder = _sharded()
    (folder / INDEX).write_bytes(data)
    try:
        found = read_manifest(folder)
    except MalmenError as error:
        check_words(printable(error.message, limit=None))
        return False
    require(Manifest.from_json(found.to_json()) == found, "a manifest that does not last")
    for record in found.tensors.values():
        require(found.weights[record.file].header_size <= record.start, "a tensor in a header")
    require(sum(weights.size for weights in found.weights.values()) <= 768, "more than there is")  # both shards
    return True


def manifest(data: bytes) -> bool:
    """A manifest as the ledger keeps it, against a folder."""
    try:
        found = Manifest.from_json(data.decode("utf-8", "replace"))
    except MalmenError:
        return False
    require(Manifest.from_json(found.to_json()) == found, "a manifest that does not last")
    require(found.digest.startswith("sha256:"), "no digest")
    for name in found.tensors:
        slot = found.slot(name)
        require(0 <= slot.start <= slot.stop, "a slot outside any file")
    for words in check_checkpoint(_sharded(), found, {}):
        printable(words, limit=None).encode()
    return True


def lock(data: bytes) -> bool:
    """What the file of a lock says, which somebody else holds."""
    folder = scratch() / "locked"
    folder.mkdir(exist_ok=True)
    held = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    grace, locks._GRACE = locks._GRACE, 0.0  # a moment that everybody waits: too long for a hundred thousand inputs
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        os.write(held, data)
        try:
            with checkpoint_lock(folder, "malmen"):
                raise Defect("a lock that two hold")
        except Locked as error:
            check_words(error.message)
            return "another process" not in error.message
    finally:
        locks._GRACE = grace
        os.close(held)


# Workspaces ---------------------------------------------------------------------------------------------------------


@cache
def _ledger() -> Ledger:
    """A ledger of a model with two entries, open for good."""
    workspace, _ = make_world(scratch() / "world")
    ledger = Ledger.open(workspace, writing=True)
    apply(ledger, fact("a"), fact("b", "no"))
    return ledger


def sidecar(data: bytes) -> bool:
    """Another ledger's sidecar: warned of, kept while this one's edits stand, and put back with the same content."""
    ledger, model = _ledger(), tiny(_ledger())
    (model.path / SIDECAR).write_bytes(data)
    before = read_sidecar(model.path)
    printable(warning_about(model.path) or "", limit=None).encode()
    refresh_sidecar(ledger, model, edited=True)
    require((read_sidecar(model.path) or {}).get("model") == model.name, "not this ledger's sidecar")
    refresh_sidecar(ledger, model, edited=False)
    after = read_sidecar(model.path)
    # Compared as texts: what is no number is not equal to itself. An empty one says nothing, and is not put back.
    said = [json.dumps(content or {}, sort_keys=True) for content in (before, after)]
    require(said[0] == said[1] or (after is None and len(data) > 1000), "another sidecar than there was")
    return bool(before)


def run_note(data: bytes) -> bool:
    """The note of a training run, as gc shows it."""
    folder = scratch() / "run"
    folder.mkdir(exist_ok=True)
    (folder / NOTE).write_bytes(data)
    words, model = run_words(folder), run_model(folder)
    check_words(words)
    require(model is None or isinstance(model, str), "a model's name that is no text")
    return words != "an interrupted training run"


def entry_name(data: bytes) -> bool:
    """An entry as a user names it: bytes of a command line."""
    name = data.decode("utf-8", "surrogateescape")
    with _ledger().read() as db:
        try:
            found = store.resolve_entry(db, name, tiny(_ledger()).id if len(data) % 2 else None)
        except MalmenError as error:
            printable(error.message, limit=None).encode()
            return False
    require(found.number in (1, 2), "an entry that is not there")
    return True


def plan(data: bytes) -> bool:
    """A saved plan."""
    try:
        found = read_plan(placed("plan.json", data))
    except MalmenError as error:
        check_words(printable(error.message, limit=None))
        return False
    check_facts(found.facts)
    for text in (found.model, found.base, found.head, found.editor, found.active_digest, found.facts.source):
        check_words(text)
    return True


def settings(data: bytes, suffix: str) -> bool:
    """Training settings: what is accepted gives the same settings when it is written as JSON and read again."""
    try:
        found = resolve_training(None, placed(f"settings{suffix}", data), {})
    except MalmenError as error:
        printable(error.message, limit=None).encode()
        return False
    again = resolve_training(None, placed("again.json", found.model_dump_json().encode()), {})
    require(again == found, "settings that do not last")
    return True


PARSERS: dict[str, Target] = {
    "facts, detected": partial(facts, format=None),
    **{f"facts, {name}": partial(facts, format=name) for name in get_args(FactFormat)},
    "fact's row": fact_row,
    "shown text": shown,
    "safetensors header": header,
    "index of shards": index,
    "manifest": manifest,
    "saved plan": plan,
    "settings, JSON": partial(settings, suffix=".json"),
    "settings, TOML": partial(settings, suffix=".toml"),
    "lock file": lock,
    "sidecar": sidecar,
    "training note": run_note,
    "entry name": entry_name,
}
