"""Options and arguments that several verbs share, and the workspace and command line every verb needs."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from malmen_cli.cli.completion import editor_ids, entry_ids, model_names, split_names
from malmen_cli.cli.output import say
from malmen_cli.errors import UsageError
from malmen_cli.facts import printable
from malmen_cli.facts.decoding import encodable
from malmen_cli.facts.formats import FactFormat
from malmen_cli.ledger import Ledger, announce_waiting, find_workspace, short
from malmen_cli.ledger.records import EditorRecord, Entry, ModelRecord

OnConflict = Literal["first", "last"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

WorkspaceOption = Annotated[
    Path | None,
    typer.Option(
        "--workspace", metavar="DIR", help="The workspace (default: the nearest .malmen upwards, or $MALMEN_WORKSPACE)."
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="A registered model, its folder, or its name in the hub cache (default: the only one).",
        autocompletion=model_names,
    ),
]
OnlyModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="Only this model: its name or its folder (default: all).",
        autocompletion=model_names,
    ),
]
EditorOption = Annotated[
    str | None,
    typer.Option(
        "--editor",
        metavar="ID",
        help="The editor (default: the one in force, else the newest).",
        autocompletion=editor_ids,
    ),
]
EntryArgument = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="An entry: id or its first digits, HEAD, HEAD^, HEAD~2, #7.", autocompletion=entry_ids
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print ids only.")]


def _device_name(name: str) -> str:
    """A name that a device could have; whether it is there is asked where torch is loaded. Raises UsageError."""
    if not re.fullmatch(r"auto|(cpu|cuda|mps)(:[0-9]+)?", name):
        raise UsageError(
            f"device {printable(name)}: a device is cpu, cuda, cuda:N or mps", remedy="use --device cpu or auto"
        )
    return name


DeviceOption = Annotated[
    str,
    typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ..., mps or auto.", callback=_device_name),
]
DtypeOption = Annotated[
    Dtype | None,
    typer.Option(
        "--dtype",
        help="What the language model computes in (default: what the editor was trained in).",
    ),
]
OnConflictOption = Annotated[
    OnConflict | None,
    typer.Option("--on-conflict", help="Of two targets for one prompt keep the first or the last (default: refuse)."),
]
FactsArgument = Annotated[
    Path | None, typer.Argument(metavar="FILE", help="A fact file; - reads standard input.", show_default=False)
]
SplitOption = Annotated[
    str | None,
    typer.Option(
        "--split",
        metavar="NAME",
        help="The file that malmen data add named so, instead of FILE.",
        autocompletion=split_names,
    ),
]
FormatOption = Annotated[
    FactFormat | None, typer.Option("--format", help="The fact file's format (default: detected, record by record).")
]
BatchTokensOption = Annotated[
    int | None,
    typer.Option(
        "--batch-tokens",
        min=1,
        help="Padded tokens per model batch (default: 1,024 of 16-bit numbers, 512 of float32).",
        show_default=False,
    ),
]
LockTimeoutOption = Annotated[
    float,
    typer.Option(
        "--lock-timeout",
        metavar="SECONDS",
        min=0,
        help="How long to wait for another process that holds the checkpoint or the workspace.",
    ),
]
DownloadOption = Annotated[
    bool,
    typer.Option(
        "--download", help="Fetch the model from the Hugging Face hub where it is neither registered nor in the cache."
    ),
]


@contextmanager
def open_ledger(workspace: Path | None, *, writing: bool = False) -> Iterator[Ledger]:
    """The ledger of the workspace a command works in."""
    say_waiting()
    with Ledger.open(find_workspace(workspace), writing=writing) as ledger:
        yield ledger


def refuse_idle(context: typer.Context, where: str, *, used: Collection[str] = (), idle: Collection[str] = ()) -> None:
    """Refuse options of the command line that have no part in what is asked for: a user who gives one expects more.

    Args:
        where: what is asked for, in words. used, idle: parameters of the command that have a part in it, or have none:
            one of the two.

    Raises:
        UsageError: naming each such option.
    """
    given = [
        _name(context, parameter)
        for parameter in context.command.params
        if (parameter.name not in used if used else parameter.name in idle) and was_given(context, str(parameter.name))
    ]
    if given:
        named, has, it = ", ".join(given), "has" if len(given) == 1 else "have", "it" if len(given) == 1 else "them"
        raise UsageError(f"{named} {has} no part in {where}", remedy=f"Leave {it} out.")


def _name(context: typer.Context, parameter: Any) -> str:
    """A parameter as it is written on the command line; of a switch with two sides the one that was given."""
    off = parameter.secondary_opts and context.params.get(parameter.name) is False
    names = [name for name in (parameter.secondary_opts if off else parameter.opts) if name.startswith("-")]
    return str(max(names, key=len, default=parameter.human_readable_name))


def was_given(context: typer.Context, parameter: str) -> bool:
    """Whether the command line names it, be it with the value that it has anyway."""
    return getattr(context.get_parameter_source(parameter), "name", "") == "COMMANDLINE"


def say_waiting() -> None:
    """Have whoever looks at stderr told that this command waits for another one, and for which."""
    announce_waiting(lambda words: say(f"note: {words}"))


def command_line() -> str:
    """The command as the user typed it, for the ledger."""
    return encodable(shlex.join(["malmen", *sys.argv[1:]]))


def short_id(record: Entry | EditorRecord | str) -> str:
    """The short form of an id, also of a record's, that is shown and accepted everywhere."""
    return short(record if isinstance(record, str) else record.id)


def entry_json(entry: Entry, model: ModelRecord, head: bool) -> dict[str, object]:
    """An entry as `--json` shows it in `log`, `show`, `apply` and `revert`."""
    return {
        "id": entry.id,
        "short": short_id(entry),
        "number": entry.number,
        "kind": entry.kind,
        "status": entry.status,
        "head": head,
        "model": model.name,
        "parent": entry.parent,
        "target": entry.target,
        "editor": entry.editor_id,
        "fact_set": entry.fact_set_digest,
        "source": entry.source,
        "active_digest": entry.active_digest,
        "created_at": entry.created_at,
        "command": entry.command,
        "details": entry.details,
    }
