"""On a terminal: a bar that comes and goes, a little colour, tables as wide as the screen. In a pipe: none of that."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from pseudo_terminal import CTRL_D, PseudoTerminal
from rich.cells import cell_len
from tiny_models import World, environment, make_fact, make_facts, make_world, write_facts

from malmen_cli.errors import ExitCode

STYLE = re.compile(r"\x1b\[[0-9;]*m")
WIDE = ("日本国の首都", "مصر", "e\u0301te\u0301", "🇯🇵 👩‍👩‍👧", "São Tomé", "plain")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = make_world(tmp_path_factory.mktemp("world"))
    world.apply(*(replace(make_fact(i), prompt=f"The capital of {name} is") for i, name in enumerate(WIDE)))
    world.apply(*make_facts(3, start=10))
    return world


def on_terminal(world: World, *arguments: str, columns: int = 100, **env: str) -> PseudoTerminal:
    command = [sys.executable, "-m", "malmen_cli", *arguments]
    with PseudoTerminal(command, cwd=world.checkpoint.parent, env=env, columns=columns) as terminal:
        terminal.wait()
    return terminal


def in_pipe(world: World, *arguments: str, **env: str) -> tuple[str, str]:
    command = [sys.executable, "-m", "malmen_cli", *arguments]
    variables = environment() | {"TERM": "xterm-256color"} | env
    done = subprocess.run(command, cwd=world.checkpoint.parent, env=variables, capture_output=True, text=True)
    return done.stdout, done.stderr


class TestColour:
    def test_ids_headers_and_words_that_matter(self, world: World) -> None:
        log = on_terminal(world, "log").output
        assert re.search(r"\x1b\[33m[0-9a-f]{10}\x1b\[0m", log) and "\x1b[32mHEAD\x1b[0m" in log
        assert "\x1b[1mprompt\x1b[0m" in on_terminal(world, "show").output
        assert "\x1b[32mSound:\x1b[0m" in on_terminal(world, "verify").output
        assert "\x1b[31m\x1b[1mmalmen:\x1b[0m" in on_terminal(world, "show", "nothing").output

    @pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"TERM": "dumb", "FORCE_COLOR": "1"}])
    @pytest.mark.parametrize("verb", ["log", "show", "--help", "verify"])
    def test_there_is_none_where_it_is_not_wanted(self, world: World, verb: str, env: dict[str, str]) -> None:
        assert "\x1b" not in on_terminal(world, verb, **env).output

    @pytest.mark.parametrize("env", [{}, {"GITHUB_ACTIONS": "true"}, {"FORCE_COLOR": "1"}, {"CLICOLOR_FORCE": "1"}])
    @pytest.mark.parametrize("verb", ["log", "show", "--help", "verify", "show nothing", "aply"])
    def test_there_is_none_in_a_pipe(self, world: World, verb: str, env: dict[str, str]) -> None:
        out, err = in_pipe(world, *verb.split(), **env)
        assert "\x1b" not in out + err

    def test_each_stream_is_looked_at_by_itself(self, world: World) -> None:
        """Data goes into a file, an error to the terminal."""
        script = f'"{sys.executable}" -m malmen_cli log > out; "{sys.executable}" -m malmen_cli show nothing >> out'
        with PseudoTerminal(["bash", "--norc", "-c", script], cwd=world.checkpoint.parent) as terminal:
            terminal.wait()
        assert "\x1b" not in (world.checkpoint.parent / "out").read_text()
        assert "\x1b[31m" in terminal.output


class TestTables:
    @pytest.mark.parametrize("columns", [60, 80, 200])
    def test_they_are_cut_to_the_width_not_wrapped(self, world: World, columns: int) -> None:
        terminal = on_terminal(world, "log", columns=columns)
        lines = STYLE.sub("", terminal.output).splitlines()
        assert len(lines) == 3
        assert all(cell_len(line) <= columns for line in lines)
        assert (max(map(cell_len, lines)) == columns) == any("…" in line for line in lines)
        # What is narrow stays whole: numbers, ids and marks.
        assert [line.split()[0] for line in lines] == ["#3", "#2", "#1"]
        assert all(re.search(r"\s[0-9a-f]{10}\s", line) for line in lines) and lines[0].endswith("HEAD")

    @pytest.mark.parametrize(("columns", "digits"), [(50, "[0-9a-f]{10}"), (40, "[0-9a-f]{4,}…")])
    def test_ids_are_cut_last(self, world: World, columns: int, digits: str) -> None:
        output = STYLE.sub("", on_terminal(world, "log", columns=columns).output)
        assert all(re.match(rf"#\d  {digits}  ", line) for line in output.splitlines()), output

    def test_in_a_pipe_the_width_does_not_count(self, world: World) -> None:
        narrow, wide = in_pipe(world, "log", COLUMNS="40"), in_pipe(world, "log", COLUMNS="200")
        assert narrow == wide and max(map(len, narrow[0].splitlines())) > 100

    def test_values_of_fields_are_whole(self, world: World) -> None:
        entry = STYLE.sub("", on_terminal(world, "show", columns=60).output).splitlines()[0]
        assert re.fullmatch(r"entry +#3 sha256:[0-9a-f]{64} HEAD", entry)

    @pytest.mark.parametrize("columns", [46, 100])
    def test_wide_and_combining_characters_align(self, world: World, columns: int) -> None:
        output = STYLE.sub("", on_terminal(world, "show", "#2", columns=columns).output)
        table = [line for line in output.splitlines() if re.match(r"\d  ", line)]
        assert len(table) == len(WIDE)
        # Every target, which is ASCII or a word of one column per letter, begins in the same column.
        ends = {cell_len(line[: line.rindex("  ") + 2]) for line in table}
        assert len(ends) == 1 and all(cell_len(line) <= columns for line in table)
        piped = in_pipe(world, "show", "#2")[0]
        assert all(name in piped for name in WIDE)


class TestProgress:
    @pytest.fixture
    def file(self, world: World) -> Path:
        bare = [replace(fact, rephrases=(), unrelated=()) for fact in make_facts(600, start=100)]
        return write_facts(world.checkpoint.parent / "many.jsonl", bare)

    def test_a_bar_is_seen_and_gone(self, world: World, file: Path) -> None:
        arguments = ("apply", file.name, "--dry-run", "--batch-tokens", "64", "--device", "cpu")
        terminal = on_terminal(world, *arguments)
        assert "━" in terminal.output and "\x1b[?25l" in terminal.output
        assert "━" not in "\n".join(terminal.screen()) and not terminal.cursor_is_hidden()
        quiet = on_terminal(world, *arguments, TERM="dumb").output
        assert "━" not in quiet and "\x1b" not in quiet

    def test_data_stays_on_stdout_while_there_is_a_bar(self, world: World, file: Path) -> None:
        script = f'"{sys.executable}" -m malmen_cli plan {file.name} --batch-tokens 64 --device cpu --json > plan'
        with PseudoTerminal(["bash", "--norc", "-c", script], cwd=world.checkpoint.parent) as terminal:
            assert terminal.wait() == ExitCode.DONE
        assert "━" in terminal.output
        assert '"prediction"' in (world.checkpoint.parent / "plan").read_text()

    def test_elsewhere_there_is_a_line_now_and_then(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from malmen_cli.cli import display

        with display.BarDisplay() as bar:
            bar("reading", 1, 3)
            assert capsys.readouterr().err == ""
            monkeypatch.setattr(display, "SECONDS_BETWEEN_LINES", 0.0)
            bar("reading", 2, 3)
        assert capsys.readouterr() == ("", "reading: 2 of 3\n")


def test_only_gc_asks_and_no_answer_is_no(world: World) -> None:
    command = [sys.executable, "-m", "malmen_cli", "gc", "--states"]
    for answer, status in ((CTRL_D, ExitCode.FAILED), ("n\r", ExitCode.FAILED), ("y\r", ExitCode.DONE)):
        with PseudoTerminal(command, cwd=world.checkpoint.parent) as terminal:
            terminal.wait_for("[y/N]")
            terminal.type(answer)
            assert terminal.wait() == status
            assert "Traceback" not in terminal.output
