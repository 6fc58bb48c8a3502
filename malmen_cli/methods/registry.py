"""The editing methods by name. Light: neither torch nor pydantic is loaded until a method is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from malmen_cli.errors import UsageError

if TYPE_CHECKING:
    from malmen_cli.config import RunSettings


@dataclass(frozen=True)
class Method:
    """One editing method.

    Attributes:
        name: as `--method` takes it and an editor's settings keep it. paper: where from.
        per_fact: a fact's rows depend on the fact alone; else the shift is made anew from the whole set of facts.
        trained: its editors come from `malmen train`; else one is made when it is first asked for.
        settings, implementation: `module:class` of its settings and of what does the work.
        takes_text: it is made from running text too. seeded: its seed has a part, in its training or its shifts.
    """

    name: str
    paper: str
    per_fact: bool
    trained: bool
    settings: str
    implementation: str
    takes_text: bool = False
    seeded: bool = False

    def train_command(self, model: str) -> str:
        """What trains or makes an editor of it, with no more than has a part in it."""
        words = ["malmen train", *(["FILE"] if self.per_fact else []), f"--model {model}"]
        words += [] if self.name == "malmen" else [f"--method {self.name}"]
        return " ".join(words + (["--text FILE"] if self.takes_text else []))

    def settings_class(self) -> type[RunSettings]:
        found: type[RunSettings] = _loaded(self.settings)
        return found

    def load(self) -> Any:
        """The class that does the work: of a per-fact method an editor, of a per-set one a `SetMethod`."""
        return _loaded(self.implementation)


_METHODS = (
    Method(
        "malmen",
        "MALMEN (Tan, Zhang and Fu, ICLR 2024, https://arxiv.org/abs/2311.04661)",
        per_fact=True,
        trained=True,
        settings="malmen_cli.config:TrainingConfig",
        implementation="malmen_cli.editing.editor:Editor",
        seeded=True,
    ),
    Method(
        "mend",
        "MEND (Mitchell et al., ICLR 2022, https://arxiv.org/abs/2110.11309)",
        per_fact=True,
        trained=True,
        settings="malmen_cli.config:TrainingConfig",
        implementation="malmen_cli.methods.mend:MendEditor",
        seeded=True,
    ),
    Method(
        "ultraedit",
        "UltraEdit (Gu et al., 2025, https://arxiv.org/abs/2505.14679)",
        per_fact=True,
        trained=False,
        settings="malmen_cli.methods.settings:UltraEditSettings",
        implementation="malmen_cli.methods.ultraedit:UltraEdit",
    ),
    Method(
        "ft",
        "fine-tuning, as in MALMEN (https://arxiv.org/abs/2311.04661)",
        per_fact=False,
        trained=False,
        settings="malmen_cli.methods.settings:FineTuningSettings",
        implementation="malmen_cli.methods.fine_tuning:FineTuning",
        seeded=True,
    ),
    Method(
        "locft-bf",
        "LocFT-BF (Yang et al., 2025, https://arxiv.org/abs/2509.22072)",
        per_fact=False,
        trained=False,
        settings="malmen_cli.methods.settings:LocFTSettings",
        implementation="malmen_cli.methods.locft:LocFT",
        seeded=True,
    ),
    Method(
        "memit",
        "MEMIT (Meng et al., ICLR 2023, https://arxiv.org/abs/2210.07229)",
        per_fact=False,
        trained=False,
        settings="malmen_cli.methods.settings:MemitSettings",
        implementation="malmen_cli.methods.memit:Memit",
        takes_text=True,
    ),
)

METHODS: Mapping[str, Method] = {method.name: method for method in _METHODS}


def method_named(name: str) -> Method:
    """The method of this name.

    Raises:
        UsageError: there is none, with the list of those there are.
    """
    if name not in METHODS:
        raise UsageError(f"there is no method {name!r:.60}", remedy=f"Methods are {', '.join(METHODS)}.")
    return METHODS[name]


def method_of(config: Mapping[str, Any]) -> Method:
    """The method of an editor whose stored configuration this is; editors of before methods were named are malmen's.

    Raises:
        UsageError: this malmen does not know it.
    """
    settings = config.get("config")
    name = settings.get("method", "malmen") if isinstance(settings, dict) else "malmen"
    if not isinstance(name, str) or name not in METHODS:
        raise UsageError(
            f"an editor is of the method {name!r:.60}", remedy="This malmen does not know it: use a newer one."
        )
    return METHODS[name]


def _loaded(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
