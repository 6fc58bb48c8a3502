"""Settings of the methods that need no training: frozen, a comment and unit per field, unknown keys are errors.

Beside `config.TrainingConfig`, which has those of the trained ones; told apart by `method`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from malmen_cli.config import MANY, RunSettings, read_settings, resolve
from malmen_cli.methods.registry import Method


class MethodSettings(RunSettings):
    """What every method without training has in common."""

    seed: int = Field(default=0, ge=0, lt=1 << 63)
    # Globs over module paths; None: those of the registration, or some of them.
    layers: Annotated[tuple[str, ...], Field(strict=False)] | None = None

    @field_validator("layers", mode="before")
    @classmethod
    def _named(cls, layers: object) -> object:
        named = (layers,) if isinstance(layers, str) else layers
        if named is None or (isinstance(named, (list, tuple)) and named and all(map(_is_text, named))):
            return named
        raise ValueError("should be one or more globs over module paths")


class UltraEditSettings(MethodSettings):
    """UltraEdit (arXiv 2505.14679, section 3): d = -eta |u^|^2 g^, ridge 1, raw keys in the Gram matrix."""

    method: Literal["ultraedit"] = "ultraedit"
    step_size: float | None = Field(default=None, gt=0, le=1e6)  # eta, 1e-6 in the official code; None: as change says
    change: float = Field(default=1.0, gt=0, le=1e6)  # mean |d| of calibration rows, as a share of their mean |u W0|
    ridge: float = Field(default=1.0, gt=0, le=1e12)
    normalise: Literal["layer", "shape"] = "shape"  # moments per layer, or shared by all layers of one shape (official)
    calibration_facts: int = Field(default=1024, ge=1, le=MANY)  # most facts whose rows the normaliser is calibrated on


class MiniBatchSettings(MethodSettings):
    """What fine-tuning in mini-batches, epoch after epoch over all facts, has to be told (AdamW, betas 0.9 and 0.999).

    `seed` is that of the order of facts, drawn anew for each epoch. A relative rate alone takes the place of the
    method's own learning rate.
    """

    learning_rate: float | None = Field(gt=0, le=1e3)  # AdamW, the same throughout
    relative_rate: float = Field(default=0.05, gt=0, le=1e3)  # instead, where that is None: a share of a matrix's
    # root mean square, for each matrix its own
    weight_decay: float = Field(ge=0, le=1e12)  # decoupled: the share, times the learning rate, lost with each step
    epochs: int = Field(ge=1, le=MANY)  # passes over all facts, at most
    batch_facts: int = Field(ge=1, le=MANY)  # facts per step
    # Nats: batches below it take no step, and an epoch below it is the last; 0: never.
    small_loss: float = Field(ge=0, le=1e6)
    batch_tokens: int = Field(default=2048, ge=1, le=MANY)  # padded tokens that the model runs at once

    @model_validator(mode="before")
    @classmethod
    def _relative(cls, given: object) -> object:
        return {"learning_rate": None, **given} if isinstance(given, dict) and "relative_rate" in given else given


class FineTuningSettings(MiniBatchSettings):
    """Fine-tuning of all edited layers (FT).

    Learning rate, weight decay and epochs are those of the baseline in MALMEN's official code (arXiv 2311.04661;
    `config/editor/ft.yaml`), batches of 32 those of its models (`config/data/zsre.yaml`); it has no early stop.
    """

    method: Literal["ft"] = "ft"
    learning_rate: float | None = Field(default=5e-4, gt=0, le=1e3)
    weight_decay: float = Field(default=5e-4, ge=0, le=1e12)
    epochs: int = Field(default=5, ge=1, le=MANY)
    batch_facts: int = Field(default=32, ge=1, le=MANY)
    small_loss: float = Field(default=0.0, ge=0, le=1e6)


class LocFTSettings(MiniBatchSettings):
    """LocFT-BF (arXiv 2509.22072): breadth-first mini-batch fine-tuning of one MLP down-projection.

    The official code (ICT-STAR/LocFT, `hparams/*.yaml`) trains Llama-3-8B and Qwen2.5-7B at a learning rate of 5e-4
    for 25 epochs in batches of 100, on 3,000 facts, and has these: no weight decay, and the early stop. It also has an
    end-of-text token after each target, which `end_of_text` is for: by default none, as of every method, so that a
    comparison asks all of them the same; free answers of several tokens are worse for it. Rate, epochs, batches and
    layer here were chosen on a GPT-2 of 6 layers and CounterFact, for the best harmonic mean at 64 and 256 facts;
    there, 5e-4 moves next to nothing.
    """

    method: Literal["locft-bf"] = "locft-bf"
    learning_rate: float | None = Field(default=None, gt=0, le=1e3)  # AdamW; None: as relative_rate says
    relative_rate: float = Field(default=0.05, gt=0, le=1e3)  # AdamW's, as a share of the matrix's root mean square
    weight_decay: float = Field(default=0.0, ge=0, le=1e12)
    epochs: int = Field(default=50, ge=1, le=MANY)
    batch_facts: int = Field(default=16, ge=1, le=MANY)
    small_loss: float = Field(default=1e-2, ge=0, le=1e6)
    depth: float = Field(default=0.7, ge=0, le=1)  # which layer where none is named: 0 the first, 1 the last of them


class MemitSettings(MethodSettings):
    """MEMIT (arXiv 2210.07229); steps, coefficients, clamp and contexts as its official code has them for GPT-J."""

    method: Literal["memit"] = "memit"
    # Adam steps per fact for what the last edited block should put out.
    target_steps: int = Field(default=25, ge=1, le=MANY)
    target_learning_rate: float | None = Field(default=None, gt=0, le=1e3)  # Adam; 0.5 officially; None: target_rate
    target_rate: float = Field(default=0.3, gt=0, le=1e3)  # Adam's rate, as a share of the root mean square of z0
    target_loss: float = Field(default=0.05, ge=0, le=1e6)  # nats: a fact whose loss is below it is done
    weight_decay: float = Field(default=0.5, ge=0, le=1e6)  # coefficient of |delta| / |z0|^2
    kl_factor: float = Field(default=0.0625, ge=0, le=1e6)  # coefficient of the KL divergence after "SUBJECT is a"
    clamp: float = Field(default=0.75, gt=0, le=1e6)  # most |delta|, as a share of |z0|
    covariance_weight: float = Field(default=15000.0, gt=0, le=1e12)  # lambda of the solve, in keys
    covariance_tokens: int = Field(default=100_000, ge=1, le=MANY)  # at most, of the text that C0 is the mean over
    # Of contexts, which the model goes on with.
    prefixes: tuple[str, ...] = Field(default=("The", "Therefore", "Because", "I", "You"), strict=False)
    prefix_tokens: int = Field(default=10, ge=1, le=MANY)  # new ones per context
    without_subject: Literal["refuse", "last token"] = "refuse"  # facts that name none, or not in their prompt
    batch_tokens: int = Field(default=2048, ge=1, le=MANY)  # padded tokens that the model runs at once

    @field_validator("prefixes")
    @classmethod
    def _begun(cls, prefixes: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(_is_text, prefixes)):
            raise ValueError("should hold no blank text")
        return prefixes


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def resolve_settings(method: Method, file: Path | None, flags: dict[str, Any]) -> RunSettings:
    """A method's settings: its defaults, overlaid with a JSON or TOML file, overlaid with flags that are not None.

    Raises:
        UsageError: unknown key, impossible value or unreadable file, each named.
    """
    settings = method.settings_class()
    return resolve(
        settings,
        {"method": method.name},
        read_settings(file),
        flags,
        what=f"settings of {method.name}",
    )
