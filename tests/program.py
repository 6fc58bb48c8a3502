"""The program as its tests see it: its verbs, taken from the program itself, and running them in this process."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from malmen_cli.cli import main

Verb = tuple[str, ...]


@cache
def verbs() -> dict[Verb, Any]:
    """Every verb and its command: ("log",), ("models", "list"), ..."""
    return dict(_below((), typer.main.get_command(main.app)))


@cache
def groups() -> dict[Verb, Any]:
    """What has verbs below it, the program itself among them."""
    top = typer.main.get_command(main.app)
    below = {(name,): top.get_command(None, name) for name in top.commands}
    return {(): top} | {path: group for path, group in below.items() if isinstance(group, TyperGroup)}


def _below(path: Verb, command: Any) -> Iterator[tuple[Verb, Any]]:
    if not isinstance(command, TyperGroup):
        yield path, command
        return
    for name in command.commands:
        yield from _below((*path, name), command.get_command(None, name))


def options(verb: Verb) -> set[str]:
    """All spellings of a verb's options, `-h` and `--help` among them."""
    return {
        "-h",
        "--help",
        *(name for p in verbs()[verb].params for name in (*p.opts, *p.secondary_opts) if name[0] == "-"),
    }


def problems(line: str) -> list[str]:
    """What is wrong with a `malmen ...` command line: a verb or an option that does not exist, missing values.

    Prompts, comments, pipes, redirections and what a shell would put into `$(...)` are left out.
    """
    words = _words(line)
    if words[:1] != ["malmen"]:
        return [f"{line!r} does not call malmen"]
    words = words[1:]
    if not words or words[0] in ("--help", "-h", "--version", "--install-completion", "--show-completion"):
        return []
    for length in (1, 2):
        if (verb := tuple(words[:length])) in verbs():
            return _problems_of_arguments(verb, words[length:], line)
    if tuple(words[:1]) in groups() and words[1:2] in (["-h"], ["--help"], []):
        return []
    return [f"{line!r}: no such verb"]


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars="|&;<>")
    lexer.commenters = ""
    lexer.wordchars += ","  # a list of numbers is one word
    words: list[str] = []
    for word in lexer:
        if word[0] in "|&;<>" or (word[0] == "#" and not word[1:2].isdigit()):
            break
        words.append(word)
    return words


def _problems_of_arguments(verb: Verb, words: Sequence[str], line: str) -> list[str]:
    command = verbs()[verb]
    flags = {name for p in command.params if getattr(p, "is_flag", False) for name in (*p.opts, *p.secondary_opts)}
    found, arguments, given, rest = [], 0, set(), list(words)
    while rest:
        word = rest.pop(0)
        name, equals, _ = word.partition("=")
        if word == "-" or word[0] != "-":
            arguments += 1
        elif name not in options(verb):
            found.append(f"{line!r}: {shlex.join(verb)} has no option {name}")
        else:
            given.add(name)
            if name not in {*flags, "-h", "--help"} and not equals:
                if not rest:
                    found.append(f"{line!r}: {name} lacks its value")
                rest[:1] = []
    if given & {"-h", "--help"}:
        return found
    places = [p for p in command.params if p.opts[0][0] != "-"]
    least, most = sum(p.required for p in places), len(places)
    if not least <= arguments <= most:
        found.append(f"{line!r}: {arguments} arguments, and {shlex.join(verb)} takes {least} to {most}")
    for p in command.params:
        if p.required and p.opts[0][0] == "-" and not given & set(p.opts):
            found.append(f"{line!r}: {p.opts[0]} is missing")
    return found


def run_here(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Run a command in this process, which has loaded torch already: exit status, standard output, standard error."""
    capfd.readouterr()
    before, sys.argv = sys.argv, ["malmen", *map(str, arguments)]
    try:
        status = main._status()
    finally:
        sys.argv = before
    out, err = capfd.readouterr()
    return status, out, err
