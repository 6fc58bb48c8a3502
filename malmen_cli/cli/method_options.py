"""`--method` and what goes with it: an editor asked for by its method, with its settings and running text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from malmen_cli.errors import UsageError
from malmen_cli.methods.registry import METHODS, Method, method_named

if TYPE_CHECKING:
    from malmen_cli.config import RunSettings
    from malmen_cli.operations.method_editors import MethodRequest

MethodOption = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="NAME",
        help=f"Edit by this method: {', '.join(METHODS)}. Those without training are made where there is none yet.",
        autocompletion=lambda incomplete: [name for name in METHODS if name.startswith(incomplete)],
    ),
]
MethodSettingsOption = Annotated[
    Path | None,
    typer.Option("--method-settings", metavar="FILE", help="Settings of --method, as JSON or TOML."),
]
TextOption = Annotated[
    Path | None,
    typer.Option("--text", metavar="FILE", help="Running text, for a --method that needs some."),
]


@dataclass(frozen=True)
class Asked:
    """A method with what was read for it, before torch is loaded."""

    method: Method
    settings: RunSettings | None
    text: str | None

    def request(self) -> MethodRequest:
        """The same for the operations, which load torch."""
        from malmen_cli.operations.method_editors import MethodRequest

        return MethodRequest(self.method, self.settings, self.text)


def check_method(name: str | None, settings: Path | None, text: Path | None, editor: str | None) -> Asked | None:
    """What an apply or a plan is asked for; None without a method.

    Raises:
        UsageError: no such method, or options that do not go together.
    """
    found = check_methods([] if name is None else [name], settings, text)
    if found and editor is not None:
        raise UsageError(
            "--editor and --method both name an editor", remedy="Give one of them; malmen models show lists editors."
        )
    return found[0] if found else None


def check_methods(names: Sequence[str], settings: Path | None, text: Path | None) -> list[Asked]:
    """What an evaluation is asked for, in the order of the names. Raises as `check_method`."""
    methods = [method_named(name) for name in dict.fromkeys(names)]
    if not methods and (settings is not None or text is not None):
        raise UsageError("--method-settings and --text belong to a method", remedy="Name it: --method NAME.")
    if text is not None and not any(method.takes_text for method in methods):
        raise UsageError(f"{methods[0].name} makes no use of running text", remedy="Leave out --text.")
    read = None if text is None else read_text(text)
    found = None
    if settings is not None:
        if len(methods) > 1:
            raise UsageError("--method-settings is for one method", remedy="Give one --method, or leave it out.")
        name = methods[0].name
        if methods[0].trained:
            raise UsageError(
                f"{name} has its settings from its training", remedy=f"malmen train FILE --method {name} --config FILE"
            )
        from malmen_cli.methods.settings import resolve_settings

        found = resolve_settings(methods[0], settings, {})
    return [Asked(method, found, read if method.takes_text else None) for method in methods]


def read_text(path: Path) -> str:
    """The running text of a file. Raises UsageError for what cannot be read, or is no text."""
    from malmen_cli.operations.evaluation_files import running_text

    return running_text(path, "--text")[0]
