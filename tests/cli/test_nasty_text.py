"""Text from strangers, in facts, paths, names and commands, is shown as it is on every surface and obeyed on none.

It holds markup, an emoji's name, escape sequences that set the window's title, the colour and clear the screen, a
direction override, C1 controls, and line breaks; it goes through a whole session, in a pipe and on a terminal.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from program import run_here
from pseudo_terminal import PseudoTerminal
from tiny_models import World, make_facts, make_world, run_program

from malmen_cli.errors import ExitCode

NASTY = "[red]A[/] :smile: \x1b]0;P\x07\x1b[35;7m\u202eB\x9b2J\r\n"
SHOWN = r"[red]A[/] :smile: \x1b]0;P\x07\x1b[35;7m\u202eB\x9b2J\x0d\x0a"
PROMPT, TARGET = f"{NASTY}is", "Rome[/red]\x1b[2J"
NAME = NASTY.replace("/", "|")  # for files and folders
SHOWN_NAME = SHOWN.replace("/", "|")
FORBIDDEN = ("\x1b]", "\x1b[35;7m", "\x1b[2J", "\x9b", "\u202e", "\x07", "😄")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = make_world(tmp_path_factory.mktemp("world") / NAME)
    training = [json.loads(fact.canonical_json()) for fact in make_facts(24, start=4000)]
    for number, record in enumerate(training):
        record["unrelated"] = [{"prompt": f"{NASTY}{number}", "target": TARGET}]
    (world.checkpoint.parent / f"training{NAME}").write_text("".join(f"{json.dumps(r)}\n" for r in training))
    write(world, 0)
    return world


def write(world: World, number: int) -> Path:
    record = {"prompt": f"{PROMPT} {number}", "target": TARGET, "subject": "A", "source": NASTY, "tags": [NASTY]}
    path = world.checkpoint.parent / f"facts{NAME}"
    path.write_text(json.dumps(record | {"rephrases": [f"{NASTY}, {number}, is"]}) + "\n")
    return path


def unharmed(text: str) -> str:
    """The text, which obeys nothing that the stranger wrote, without the colours that malmen itself puts in."""
    assert not [character for character in FORBIDDEN if character in text]
    plain = re.sub(r"\x1b\[\??[0-9;]*[a-zA-Z]", "", text)
    assert "\x1b" not in plain
    return plain


class TestInAPipe:
    @pytest.fixture
    def run(self, capfd: pytest.CaptureFixture[str], world: World) -> object:
        def run(*arguments: str | Path) -> str:
            status, out, err = run_here(capfd, *arguments, "--workspace", world.workspace.root)
            assert status in (ExitCode.DONE, ExitCode.FACTS_FAILED_CHECK), err
            assert "\x1b" not in out + err
            return unharmed(out + err)

        return run

    def test_a_session(self, run: object, world: World) -> None:
        assert callable(run)
        folder = world.checkpoint.parent
        file = folder / f"facts{NAME}"
        assert SHOWN_NAME in run("models", "list")
        assert SHOWN_NAME in run("models", "show")
        settings = ["--steps", "2", "--rank", "4", "--blocks", "1", "--batch-tokens", "512"]
        run("train", folder / f"training{NAME}", *settings)
        assert SHOWN[:40] in run("plan", file)
        shown = run("apply", file)
        assert SHOWN[:30] in shown and "Rome[/red]" in shown
        assert SHOWN_NAME[:20] in run("log")
        shown = run("show")
        assert f"facts{SHOWN_NAME}" in shown and SHOWN[:50] in shown and r"Rome[/red]\x1b[2J" in shown
        assert SHOWN[:30] in run("diff", "--predictions")
        assert SHOWN[:30] in run("eval", "HEAD")
        assert SHOWN_NAME in run("data", "add", "nasty", file)
        assert SHOWN_NAME in run("data", "list")
        assert f"out{SHOWN_NAME}" in run("export", "--output", folder / f"out{NAME}", "--as", "delta")
        assert f"plan{SHOWN_NAME}" in run("plan", write(world, 1), "--quick", "-o", folder / f"plan{NAME}")
        run("gc", "--states", "--training", "--leftovers", "--dry-run")
        run("verify")
        run("recover")
        assert "1 fact out" in run("revert", "HEAD")

    def test_nothing_is_lost_in_json(self, capfd: pytest.CaptureFixture[str], world: World) -> None:
        root = world.workspace.root
        entries = json.loads(run_here(capfd, "log", "--json", "--workspace", root)[1])
        applied = next(entry for entry in entries if entry["kind"] == "apply")
        assert applied["source"].endswith(f"facts{NAME}")
        shown = json.loads(run_here(capfd, "show", applied["id"], "--json", "--workspace", root)[1])
        assert (shown["facts"][0]["prompt"], shown["facts"][0]["target"]) == (f"{PROMPT} 0", TARGET)

    @pytest.mark.parametrize(
        "arguments",
        [
            ["show", NASTY],
            ["log", "--model", NASTY],
            ["apply", "FILE", "--editor", NASTY],
            ["apply", "--split", NASTY],
            ["apply", f"missing{NASTY}"],
            ["apply", "FILE", "--device", NASTY],
            ["apply", "FILE", "--format", NASTY],
            ["apply", "--plan", f"missing{NASTY}"],
            ["train", "FILE", "--config", f"missing{NASTY}"],
            ["train", "FILE", "--layers", NASTY, "--steps", "1"],
            ["eval", f"missing{NASTY}"],
            ["diff", NASTY],
            ["export", "-o", "FOLDER"],
            ["data", "add", NASTY, "FILE"],
            ["data", "remove", NASTY],
            ["models", "add", NASTY, "FOLDER"],
            ["models", "add", "other", f"missing{NASTY}"],
            ["init", f"missing{NASTY}"],
            [f"verb{NASTY}"],
            ["log", f"--option{NASTY}"],
            ["log", NASTY],
            ["log", "--workspace", f"missing{NASTY}"],
            ["rebase", "--editor", NASTY],
            ["verify", "--expect", NASTY],
        ],
        ids=lambda arguments: " ".join(arguments).replace(NASTY, "..."),
    )
    def test_errors(self, capfd: pytest.CaptureFixture[str], world: World, arguments: list[str]) -> None:
        places = {"FILE": world.checkpoint.parent / f"facts{NAME}", "FOLDER": world.checkpoint.parent}
        words = [str(places.get(word, word)) for word in arguments]
        if "--workspace" not in words and words[0] != "init":
            words += ["--workspace", str(world.workspace.root)]
        status, out, err = run_here(capfd, *words)
        assert status in (ExitCode.USAGE, ExitCode.NO_WORKSPACE, ExitCode.FAILED, ExitCode.VERIFICATION_FAILED), err
        assert "\x1b" not in out + err
        unharmed(out + err)
        assert "unexpected error" not in err

    def test_bad_lines(self, capfd: pytest.CaptureFixture[str], world: World) -> None:
        path = world.checkpoint.parent / f"bad{NAME}.jsonl"
        lines = [{"prompt": NASTY, "target": "a"}, {"prompt": NASTY, "target": TARGET}, {NASTY: 1}, {"prompt": "\0"}]
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + NASTY)
        status, out, err = run_here(capfd, "apply", path, "--workspace", world.workspace.root)
        assert (status, out) == (ExitCode.USAGE, "")
        assert "\x1b" not in err and SHOWN_NAME in unharmed(err) and SHOWN[:20] in err


def test_on_a_terminal(world: World) -> None:
    """The same, where colours and a progress bar are shown."""
    folder = world.checkpoint.parent
    file = write(world, 2)
    session = [
        (["apply", file.name, "--device", "cpu"], SHOWN[:30]),
        (["log"], "[red]A"),
        (["show"], SHOWN_NAME),
        (["revert", "HEAD"], "1 fact out"),
        (["verify"], "Sound:"),
        (["show", NASTY], SHOWN[:40]),
        (["apply", f"missing{NAME}"], SHOWN_NAME),
    ]
    for arguments, expected in session:
        command = [sys.executable, "-m", "malmen_cli", *arguments]
        with PseudoTerminal(command, cwd=folder, columns=200) as terminal:
            terminal.wait()
            shown = unharmed(terminal.output)
        # A long line goes on in the next row by itself; nothing of it is lost.
        assert expected in shown.replace("\r\n", "\n")


def test_names_that_are_not_utf8_are_recorded_escaped(tmp_path: Path) -> None:
    """Such as those of files from older systems: whoever works on them for long must not lose the work at its end."""
    world = make_world(tmp_path)
    for name, facts in ((b"facts\xe9.jsonl", make_facts(3)), (b"training\xe9.jsonl", make_facts(24, start=4100))):
        path = tmp_path / os.fsdecode(name)
        path.write_text("".join(f"{fact.canonical_json()}\n" for fact in facts))
    (tmp_path / os.fsdecode(b"text\xe9.txt")).write_text("The river of Aland is long. " * 9)

    def run(*words: str | bytes) -> str:
        status, out, err = run_program(tmp_path, *map(os.fsdecode, words))
        assert status in (ExitCode.DONE, ExitCode.FACTS_FAILED_CHECK), err
        return out

    run("train", b"training\xe9.jsonl", "--steps", "1", "--rank", "4", "--blocks", "1", "-q")
    run("eval", b"facts\xe9.jsonl", "--failed", b"failed\xe9.jsonl", "--drift", b"text\xe9.txt", "--method", "ft")
    run("apply", b"facts\xe9.jsonl")
    run("models", "show", "--json")
    assert json.loads(run("log", "--json"))[0]["source"] == r"facts\udce9.jsonl"
    assert r"facts\udce9.jsonl" in run("eval", "--list")
    run("verify")
    assert world.checkpoint.exists()
