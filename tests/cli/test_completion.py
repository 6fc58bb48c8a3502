"""Completion as shells ask for it: ids, models, editors and splits; quick, silent, and never a word to be evaluated."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pseudo_terminal import TAB, shell
from tiny_models import TINY_TRAINING, World, environment, fact_set, make_facts, make_world, write_facts

from malmen_cli.ledger import Ledger, store
from malmen_cli.ledger.splits import add_split
from malmen_cli.operations.apply import ApplyOptions, apply_facts

HOSTILE = "facts'\"$(touch pwned)`touch pwned`\\$(touch pwned)[red]\x1b[31m.jsonl"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """#2 applies facts of a file with a hostile name, #3 of a harmless one; a split is named `few`."""
    world = make_world(tmp_path_factory.mktemp("world"), training=TINY_TRAINING)
    with world.ledger() as (ledger, model):
        for start, source in ((0, HOSTILE), (2, "more-facts.jsonl")):
            facts = fact_set(make_facts(2, start=start), source)
            apply_facts(ledger, model, facts, ApplyOptions(sample=0, check_old=0), "malmen apply")
        add_split(ledger, "few", write_facts(world.checkpoint.parent / "facts.jsonl", make_facts(2)))
    return world


def complete(folder: Path, line: str, shell: str = "bash") -> subprocess.CompletedProcess[str]:
    """What a shell is told for Tab at the end of `line`, typed in `folder`."""
    words = shlex.split(line) + ([""] if line.endswith(" ") else [])
    asked = {"COMP_WORDS": shlex.join(words).removesuffix(" ''"), "COMP_CWORD": str(len(words) - 1)}
    if shell != "bash":
        asked = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    asked["_MALMEN_COMPLETE"] = f"complete_{shell}"
    command = [sys.executable, "-m", "malmen_cli"]
    return subprocess.run(command, cwd=folder, env=environment() | asked, capture_output=True, text=True, timeout=60)


def offered(world: World, line: str) -> list[str]:
    done = complete(world.checkpoint.parent, line)
    assert done.stderr == ""
    return done.stdout.split()


def short_ids(world: World) -> list[str]:
    with Ledger.open(world.workspace) as ledger, ledger.read() as db:
        return [entry.id.removeprefix("sha256:")[:10] for entry in store.entries(db)]


def editor_id(world: World) -> str:
    with Ledger.open(world.workspace) as ledger, ledger.read() as db:
        return store.editors(db, store.only_model(db).id)[0].id


NO_ENTRYS = {"diff": ["base", "checkpoint"], "diff HEAD": ["base", "checkpoint"], "export --as lora": ["base"]}
"""States that are no entry's, by the verbs that take them."""


@pytest.mark.parametrize("verb", ["show", "revert", *NO_ENTRYS])
def test_entries(world: World, verb: str) -> None:
    found = ["HEAD", "HEAD~1", "HEAD~2", *short_ids(world), *NO_ENTRYS.get(verb, [])]
    assert offered(world, f"malmen {verb} ") == found


def test_what_was_typed_narrows_the_entries(world: World) -> None:
    newest = short_ids(world)[0]
    assert offered(world, f"malmen show {newest[:4]}") == [newest]
    assert offered(world, f"malmen show {newest}") == [newest]
    assert offered(world, "malmen show HEAD~") == ["HEAD~1", "HEAD~2"]
    assert offered(world, "malmen show --model tiny H") == ["HEAD", "HEAD~1", "HEAD~2"]
    assert offered(world, "malmen show zz") == []
    # An entry or a file: the shell offers files where nothing is offered.
    assert offered(world, "malmen eval ") == []
    assert offered(world, f"malmen eval {newest[:4]}") == [newest]


def test_ids_with_their_algorithm(world: World) -> None:
    newest = short_ids(world)[0]
    done = complete(world.checkpoint.parent, f"malmen show sha256:{newest[:4]}", "fish")
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [f"sha256:{newest}"]


def test_models_editors_and_splits(world: World) -> None:
    assert offered(world, "malmen log --model ") == ["tiny"]
    assert offered(world, "malmen models show ") == ["tiny"]
    assert offered(world, "malmen apply --editor ") == [editor_id(world)]
    assert offered(world, "malmen train --split ") == ["few"]
    assert offered(world, "malmen data remove f") == ["few"]


def test_verbs_and_options(world: World) -> None:
    assert {"apply", "log", "models"} <= set(offered(world, "malmen "))
    assert offered(world, "malmen models ") == ["add", "list", "show", "move", "families"]
    assert "--model" in offered(world, "malmen log --m")
    assert {"jsonl", "counterfact", "csv"} <= set(offered(world, "malmen apply --format "))


def test_the_workspace_that_was_named_counts(world: World, tmp_path: Path) -> None:
    done = complete(tmp_path, f"malmen show --workspace {world.workspace.root} HEAD~")
    assert done.stdout.split() == ["HEAD~1", "HEAD~2"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("broken", ["no workspace", "an empty file", "rubbish", "an old schema"])
def test_where_there_is_nothing_to_offer_it_is_silent(tmp_path: Path, broken: str, shell: str) -> None:
    if broken != "no workspace":
        (tmp_path / ".malmen").mkdir()
        content = {"an empty file": b"", "rubbish": os.urandom(5000), "an old schema": b"SQLite format 3\x00"}[broken]
        (tmp_path / ".malmen" / "ledger.db").write_bytes(content)
    done = complete(tmp_path, "malmen show ", shell)
    assert done.stderr == ""
    assert done.stdout.strip() == ("_files" if shell == "zsh" else "")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_words_come_with_what_they_stand_for_and_nothing_to_evaluate(world: World, shell: str) -> None:
    done = complete(world.checkpoint.parent, "malmen show ", shell)
    assert done.stderr == ""
    assert "apply more-facts.jsonl" in done.stdout and "register" in done.stdout
    assert "$" not in done.stdout and "`" not in done.stdout and "\x1b" not in done.stdout and "\\$" not in done.stdout
    assert not (world.checkpoint.parent / "pwned").exists()


def test_it_is_quick_and_loads_no_torch(world: World) -> None:
    code = "import sys; from malmen_cli.__main__ import main\ntry: main()\n"
    code += "finally: print(*sorted(sys.modules), file=sys.stderr)"
    asked = {"COMP_WORDS": "malmen show ", "COMP_CWORD": "2", "_MALMEN_COMPLETE": "complete_bash"}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=world.checkpoint.parent,
        env=environment() | asked,
        capture_output=True,
        text=True,
    )
    print(f"completion: {time.monotonic() - began:.2f} s")
    assert "HEAD" in done.stdout
    assert not set(done.stderr.split()) & {"torch", "transformers", "numpy", "sqlalchemy", "rich.console"}


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_scripts_for_shells(tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-m", "malmen_cli", "--show-completion"]
    variables = environment() | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run([*command, name], env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "_MALMEN_COMPLETE=complete_" + name in done.stdout


def test_in_a_real_bash(world: World, tmp_path: Path) -> None:
    """Tab after four digits completes an id; after an option, a model."""
    program = tmp_path / "malmen"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m malmen_cli "$@"\n')
    program.chmod(0o755)
    newest = short_ids(world)[0]
    path = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    variables = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    with shell(cwd=world.checkpoint.parent, env=path | variables) as terminal:
        terminal.run('eval "$(malmen --show-completion bash)"', seconds_between=0)
        terminal.type(f"malmen show {newest[:5]}{TAB}")
        terminal.wait_for(f"malmen show {newest}")
        terminal.type("\x15")  # Ctrl-U: forget that line
        terminal.type(f"malmen log -q --model t{TAB}")
        terminal.wait_for("--model tiny")
        terminal.run("")
        assert newest in terminal.output.split("--model tiny")[1]
