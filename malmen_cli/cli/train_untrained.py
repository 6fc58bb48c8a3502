"""`malmen train --method` of a method without training: its editor is made, and kept for the applies to come."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from malmen_cli.cli.display import BarDisplay
from malmen_cli.cli.fact_source import read_facts
from malmen_cli.cli.first_use import found_or_registered
from malmen_cli.cli.method_options import read_text
from malmen_cli.cli.options import command_line, open_ledger
from malmen_cli.cli.output import print_json, say
from malmen_cli.errors import UsageError
from malmen_cli.methods.registry import Method

if TYPE_CHECKING:
    from malmen_cli.facts import FactFormat, OnConflict


def make_untrained(
    method: Method,
    file: Path | None,
    split: str | None,
    model: str | None,
    text: Path | None,
    config: Path | None,
    flags: dict[str, Any],
    *,
    workspace: Path | None,
    format: FactFormat | None,
    on_conflict: OnConflict | None,
    device: str,
    lock_timeout: float,
    json: bool,
    quiet: bool,
) -> None:
    """Make an editor of the facts, of the running text, or of neither, as the method has it.

    Raises:
        UsageError: options that the method has no use for, or facts or text that it needs.
    """
    if text is not None and not method.takes_text:
        raise UsageError(f"{method.name} makes no use of running text", remedy="Leave out --text.")
    read = None if text is None else read_text(text)
    from malmen_cli.methods.settings import resolve_settings

    settings = resolve_settings(method, config, flags)
    facts = None
    if method.per_fact:
        facts = read_facts(file, split, workspace=workspace, format=format, on_conflict=on_conflict)
    from malmen_cli.operations.method_editors import MethodRequest, make_and_keep
    from malmen_cli.operations.models import pick_device

    with open_ledger(workspace, writing=True) as ledger, BarDisplay() as bar:
        record = found_or_registered(ledger, model, lock_timeout=lock_timeout)
        editor, made = make_and_keep(
            ledger,
            record,
            MethodRequest(method, settings, read),
            () if facts is None else facts.facts,
            command_line(),
            device=pick_device(device),
            lock_timeout=lock_timeout,
            progress=bar,
        )
    for warning in made.warnings:
        say(f"warning: {warning}")
    if json:
        print_json({"editor": editor.id, "model": record.name, "config": settings.model_dump(mode="json")})
    elif quiet:
        print(editor.id)
    else:
        print(f"Editor {editor.id}. {made.note}.")
        print(f"Use it: malmen apply FILE --model {record.name} --method {method.name}")
