"""The verbs: under which heading `malmen --help` lists them, and how each is imported when it is called for.

A verb is a module of this folder with a function `register(app: typer.Typer)`, and a line in `HEADINGS`. Importing only
the one that was named, and none for `malmen --help`, halves the time that takes.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

HEADINGS: dict[str, dict[str, str]] = {
    "Begin": {
        "init": "make a workspace here",
        "models": "add, list, show and move registered models",
        "data": "add, list and remove fact files by name",
        "train": "meta-train an editor for a model",
        "demo": "take the tour on a small model of a made-up world",
    },
    "Edit": {
        "plan": "what an apply would do, and what it would cost",
        "apply": "add a fact file to a model",
        "revert": "take an entry, or some facts of it, out again",
        "rebase": "move all active facts to another editor",
    },
    "Look": {
        "log": "the ledger, newest first",
        "show": "one entry in full, with its facts",
        "diff": "what changed between two states of a model",
        "eval": "how good edits are: ES, GS and LS",
    },
    "Keep": {
        "verify": "reread everything, name what is damaged",
        "recover": "settle what a killed command left half done",
        "gc": "reclaim disk space",
        "export": "a checkpoint, a delta or a LoRA adapter in a folder of its own",
    },
}
"""Every verb, with what it does in a few words, in the order in which a session meets them."""


class VerbGroup(TyperGroup):
    """typer's own group, but for the headings, and with verbs that are imported late."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands: dict[str, Any] = {verb: None for verbs in HEADINGS.values() for verb in verbs}

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in self.commands and self.commands[cmd_name] is None:
            self.commands[cmd_name] = _command(cmd_name)
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        widest = max(map(len, self.commands))
        for heading, verbs in HEADINGS.items():
            with formatter.section(heading):
                formatter.write_dl([(verb.ljust(widest), words) for verb, words in verbs.items()])


def _command(verb: str) -> Any:
    alone = typer.Typer(rich_markup_mode=None, add_completion=False)
    alone.callback()(lambda: None)  # which makes it a group, even of one command
    import_module(f"malmen_cli.cli.{verb}").register(alone)
    group = typer.main.get_command(alone)
    assert isinstance(group, TyperGroup)
    return group.commands[verb]
