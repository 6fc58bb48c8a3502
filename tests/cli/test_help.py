"""Help: every verb starts with what it does and examples that are real, and ends with its exit statuses."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from program import groups, options, problems, verbs
from tiny_models import environment

from malmen_cli.cli.verb_group import HEADINGS
from malmen_cli.errors import ExitCode

VERBS = sorted(verbs())
HEAVY = {"torch", "transformers", "numpy", "safetensors", "sqlalchemy", "alembic", "pydantic", "rich.console"}
SILENT = {("init",), ("demo",), ("models", "add"), ("models", "move"), ("data", "remove")}
SHOWS_DATA = [verb for verb in VERBS if verb not in SILENT]


def help_of(verb: tuple[str, ...]) -> str:
    command = verbs()[verb] if verb in verbs() else groups()[verb]
    context = command.make_context("malmen", ["x"] * 0, resilient_parsing=True)
    return command.get_help(context)


def examples(verb: tuple[str, ...]) -> list[str]:
    lines = help_of(verb).split("Examples:")[1].strip().splitlines()
    return [line.strip() for line in lines[: lines.index("") if "" in lines else None]]


@pytest.mark.parametrize("verb", [(), *VERBS], ids=" ".join)
def test_it_has_examples_first_and_exit_statuses_last(verb: tuple[str, ...]) -> None:
    text = help_of(verb)
    assert text.index("Examples:") < text.index("Options:") < text.index("Exit status:")
    statuses = [int(line.split()[0]) for line in text.split("Exit status:")[1].strip().splitlines()]
    assert statuses == sorted(set(statuses)) and set(statuses) <= set(ExitCode)
    assert {ExitCode.DONE, ExitCode.FAILED, ExitCode.USAGE} <= set(statuses)


@pytest.mark.parametrize("verb", [(), *VERBS], ids=" ".join)
def test_examples_are_real(verb: tuple[str, ...]) -> None:
    found = examples(verb)
    assert found
    assert [problem for line in found for problem in problems(line)] == []
    assert not verb or any(line.startswith(f"malmen {' '.join(verb)}") for line in found)


def test_the_check_of_examples_finds_what_is_wrong() -> None:
    for line in ("malmen aply x", "malmen log --modle x", "malmen log extra", "malmen log -n", "malmen revert", "ls"):
        assert problems(line), line
    for line in ("malmen log -n 3 | head", "malmen revert '#7'", "malmen apply - --json < facts", "malmen models"):
        assert not problems(line), line


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_has_the_same_options(verb: tuple[str, ...]) -> None:
    wanted = {"--workspace"} if verb not in {("init",), ("demo",), ("models", "families")} else set()
    wanted |= {"--json", "--quiet", "-q"} if verb in SHOWS_DATA else set()
    assert wanted <= options(verb)


def test_every_verb_stands_under_a_heading_once() -> None:
    listed = [verb for verbs in HEADINGS.values() for verb in verbs]
    assert len(listed) == len(set(listed))
    assert {verb[0] for verb in VERBS} <= set(listed)
    assert "Commands:" not in help_of(())


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("loud", [{}, {"GITHUB_ACTIONS": "true", "FORCE_COLOR": "1", "TERM": "xterm-256color"}])
def test_help_is_data_and_plain(flag: str, loud: dict[str, str]) -> None:
    command = [sys.executable, "-m", "malmen_cli", "log", flag]
    done = subprocess.run(command, env=environment() | loud, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: malmen log ") and "\x1b" not in done.stdout


def test_without_a_verb_there_is_help() -> None:
    for arguments in ([], ["models"], ["data"]):
        command = [sys.executable, "-m", "malmen_cli", *arguments]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
        assert done.stderr.startswith(f"Usage: {' '.join(['malmen', *arguments])} ")


def test_help_loads_nothing_large() -> None:
    code = "import sys; sys.argv = ['malmen', '--help']; from malmen_cli.__main__ import main\ntry: main()\n"
    code += "finally: print(*sorted(sys.modules), file=sys.stderr)"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    print(f"malmen --help: {time.monotonic() - began:.2f} s, {len(done.stderr.split())} modules")
    assert not set(done.stderr.split()) & HEAVY


def test_importing_the_verbs_loads_nothing_large() -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); from program import verbs; verbs()"
    command = [sys.executable, "-c", f"{code}; print(*sorted(sys.modules))"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "malmen_cli.cli.verify" in loaded and not loaded & (HEAVY - {"rich.console"})
