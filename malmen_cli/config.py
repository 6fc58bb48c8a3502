"""Every setting that shapes an editor, frozen, with its unit; an unknown or impossible value is an error.

The resolved configuration is stored with the editor, so that training the same way again
(`malmen train --config`) needs nothing else.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from malmen_cli.errors import UsageError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

LARGEST = 1 << 16  # bytes of a file of settings: TOML takes up to 200 times as much memory, and there are few settings
_NAMED = 10  # problems that are told of one file
_UNKNOWN = "extra_forbidden"  # what pydantic calls a name that it does not know

Recipe = Literal["malmen", "paper"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Settings = TypeVar("Settings", bound="RunSettings")

MANY = 1 << 40
"""More than anybody has of anything, and few enough to be counted with wherever it is handed on."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    @field_validator("*", mode="before")
    @classmethod
    def _whole(cls, value: object) -> object:
        """1e4 is written for 10,000 in files of settings."""
        return int(value) if isinstance(value, float) and value.is_integer() else value


class EditorConfig(_Frozen):
    """The shape and the starting point of an editor."""

    rank: int = Field(default=256, ge=1, le=65_536)  # of each block's A B
    blocks: int = Field(default=2, ge=1, le=1_024)  # per hyper-network
    normalise: Literal["layer", "shape"] = "layer"  # moments per layer, or shared by all layers of one shape (paper)
    step_size: Literal["log", "linear"] = "log"  # how eta is parametrised; linear is the paper's
    initial_step_size: float | None = Field(default=None, gt=0, le=1e6)  # eta; None: as initial_change says
    initial_change: float = Field(default=0.5, gt=0, le=1e6)  # mean |d| at the start, in the layer's mean |u W0|
    initial_ridge: float | None = Field(default=None, gt=0, le=1e12)  # lambda; None: 0.001 mean |u|^2 of the keys
    initial_strength: float = Field(default=4.0, gt=0, le=1e12)  # alpha / n at n = 32 rows
    initial_power: float = Field(default=0.4, ge=-8, le=8)  # p of alpha = c n^p
    preserved_keys: int = Field(default=8192, ge=0, le=MANY)  # rows of K0, of unrelated prompts; 0: no such term


class RunSettings(_Frozen):
    """How the language model is run wherever an editor is used, whatever its method: an edit depends on it."""

    dtype: Dtype = "auto"  # what the language model computes in; auto: as its files have it
    chat_template: bool = False  # prompts are a user's turn of the tokenizer's chat template
    end_of_text: bool | None = None  # the end of the answer is supervised; None: of sequence-to-sequence models alone


class TrainingConfig(RunSettings):
    """Meta-training. One step edits n facts in memory, measures, and moves the editor."""

    # Left out where it is malmen, so that the settings of editors that were trained before have the digest they had.
    method: Literal["malmen", "mend"] = Field(default="malmen", exclude_if=lambda method: method == "malmen")
    recipe: Recipe = "malmen"
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    editor: EditorConfig = EditorConfig()
    facts_per_step: int = Field(default=256, ge=1, le=MANY)  # the largest n
    sample_size: bool = True  # n drawn anew each step, 1 to facts_per_step; false: always the largest
    steps: int | None = Field(default=None, ge=1, le=MANY)  # optimiser steps
    minutes: float | None = Field(default=None, gt=0, le=MANY)  # wall time, where steps is not given
    learning_rate: float = Field(default=3e-4, gt=0, le=1e3)  # Adam, hyper-network
    scalar_learning_rate: float = Field(default=5e-2, gt=0, le=1e3)  # Adam, logs of eta, lambda and alpha
    decay: bool = True  # learning rates fall to 0 along a cosine over the run
    warmup: float = Field(default=0.02, ge=0, lt=1)  # share of the run over which they rise
    locality: float = Field(default=0.9, ge=0, le=1e6)  # coefficient of the KL divergence on unrelated prompts
    edit: float = Field(default=1.0, ge=0, le=1e6)  # coefficient of the cross-entropy on the edit prompts themselves
    # q of (1 - e^(-q l)) / q, in whose place a label's loss l would enter: what is lost anyway then pulls no more. 0: l
    saturation: float = Field(default=0.5, ge=0, le=8)
    clip: float = Field(default=1.0, gt=0, le=1e12)  # gradient norm
    reduction: Literal["fact", "batch"] = (
        "fact"  # mean over a step's facts; batch: token means summed per batch (paper)
    )
    batch_tokens: int = Field(default=2048, ge=1, le=MANY)  # padded tokens per model batch
    editor_rows: int = Field(default=4096, ge=1, le=MANY)  # rows per hyper-network chunk
    kept_states: float = Field(default=16.0, ge=0, le=1 << 20)  # GiB of lower hidden states, training and held-out each
    held_out: float = Field(default=0.05, gt=0, lt=1)  # share of rows kept for validation, by subject
    max_held_out: int = Field(default=400, ge=1, le=MANY)  # rows
    validate_every: int | None = Field(default=None, ge=1, le=MANY)  # steps; None: a fifth of the run
    save_every: int | None = Field(default=None, ge=1, le=MANY)  # steps between resumable states; None: as validations


PAPER = {
    # arXiv 2311.04661, appendix: GPT-J and T5-XL on zsRE; model batches of 32 prompts, editor batches of 1,024 tokens.
    "recipe": "paper",
    "editor": {
        "rank": 1920,
        "normalise": "shape",
        "step_size": "linear",
        "initial_step_size": 1e-6,
        "initial_ridge": 1.0,
        "preserved_keys": 0,
    },
    "facts_per_step": 1024,
    "sample_size": False,
    "learning_rate": 1e-5,
    "scalar_learning_rate": 1e-5,
    "decay": False,
    "warmup": 0.0,
    "locality": 1.0,
    "edit": 0.0,
    "saturation": 0.0,
    "reduction": "batch",
    "editor_rows": 1024,
}

RECIPES: dict[str, dict[str, Any]] = {"malmen": {}, "paper": PAPER}


_LIMITS = ("steps", "minutes")


def resolve_training(recipe: Recipe | None, file: Path | None, flags: Mapping[str, Any]) -> TrainingConfig:
    """A recipe, overlaid with a JSON or TOML file, overlaid with flags; `editor.rank` style names reach inside.

    A limit among the flags takes the place of whatever limit the file has.

    Args:
        recipe: None for the file's, or malmen where that names none.

    Raises:
        UsageError: unknown key, impossible value or unreadable file, each named.
    """
    given = read_settings(file)
    if any(flags.get(limit) is not None for limit in _LIMITS):
        given = {key: value for key, value in given.items() if key not in _LIMITS}
    named = recipe or given.get("recipe")
    start = RECIPES.get(named, {}) if isinstance(named, str) else {}
    return resolve(TrainingConfig, start, given, {**flags, "recipe": recipe})


def resolve(
    settings: type[Settings],
    start: Mapping[str, Any],
    given: Mapping[str, Any],
    flags: Mapping[str, Any],
    *,
    what: str = "training settings",
) -> Settings:
    """Settings of any kind: where they start, overlaid with a file's, overlaid with those flags that are not None.

    Args:
        what: they are, in the errors.

    Raises:
        UsageError: unknown key or impossible value, each named.
    """
    merged: dict[str, Any] = {}
    try:
        for layer in (start, given, {k: v for k, v in flags.items() if v is not None}):
            _overlay(merged, layer, what)
        return settings.model_validate(merged)
    except ValidationError as error:
        remedy = "Change the value, or leave it out for the default."
        if any(one["type"] == _UNKNOWN for one in error.errors()):
            remedy = f"{what[0].upper()}{what[1:]} are {', '.join(_names(settings))}."
        raise UsageError(f"{what}: {problems_of(error, settings)}", remedy=remedy) from None
    except RecursionError:
        raise UsageError(f"{what}: nested too deeply", remedy="Settings have one table, [editor].") from None


def problems_of(error: ValidationError, settings: type[BaseModel]) -> str:
    """What is wrong with settings of this class, in one line."""
    found, names = error.errors(include_url=False, include_context=False), list(_names(settings))
    problems = "; ".join(_in_words(one, names) for one in found[:_NAMED])
    return problems + (f"; and {len(found) - _NAMED:,} more" if len(found) > _NAMED else "")


def _in_words(problem: ErrorDetails, names: list[str]) -> str:
    """One of pydantic's problems, with what it knows of the name or the value."""
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] == _UNKNOWN:
        near = difflib.get_close_matches(name, names, n=1)
        return f"no setting is called {name}" + (f", did you mean {near[0]}?" if near else "")
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if not message.startswith("should "):
        return f"{name}: {message}"
    return f"{name} {message}, not {problem['input']!r:.60}"


def _names(settings: type[BaseModel]) -> Iterator[str]:
    """All that may be set, a table's as `editor.rank`."""
    for name, field in settings.model_fields.items():
        table = field.annotation
        if isinstance(table, type) and issubclass(table, BaseModel):
            yield from (f"{name}.{inner}" for inner in _names(table))
        else:
            yield name


def _overlay(target: dict[str, Any], layer: Mapping[str, Any], what: str) -> None:
    for key, value in layer.items():
        if isinstance(value, dict):
            inner = target.setdefault(key, {})
            if not isinstance(inner, dict):
                raise UsageError(f"{what}: {key} stands for a value and for a table")
            _overlay(inner, value, what)
        elif "." in key:
            outer, inner_key = key.split(".", 1)
            _overlay(target, {outer: {inner_key: value}}, what)
        else:
            target[key] = value


def read_settings(file: Path | None) -> dict[str, Any]:
    """What a JSON or TOML file of settings holds; nothing without a file.

    Raises:
        UsageError: it cannot be read, or holds no table.
    """
    import tomllib

    if file is None:
        return {}
    try:
        with file.open("rb") as opened:
            content = opened.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"larger than {LARGEST:,} bytes")
        text = content.decode("utf-8-sig")
        data = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror or error if isinstance(error, OSError) else error
        raise UsageError(f"{file}: {why}", remedy="Settings are read from a JSON or TOML file.") from None
    if not isinstance(data, dict):
        raise UsageError(f"{file}: holds no table of settings")
    return data
