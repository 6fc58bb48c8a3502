"""`malmen apply --require --protect`: exit 14 with the figures, and not a byte changed; what passes is recorded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from program import run_here
from tiny_models import World, environment, everything, make_facts, make_world, write_facts

from malmen_cli.errors import ExitCode

DONE = (ExitCode.DONE, ExitCode.FACTS_FAILED_CHECK)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = make_world(tmp_path_factory.mktemp("made"))
    world.apply(*make_facts(2))
    folder = world.checkpoint.parent
    write_facts(folder / "facts.jsonl", make_facts(3, start=2))
    (folder / "protect.txt").write_text("Who lives there speaks\nA stone, a bridge\n")
    return world


@pytest.fixture
def run(made: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(made.checkpoint.parent)
    return lambda *words: run_here(capfd, *words)


@pytest.mark.parametrize("options", [[], ["--dry-run"], ["--output", "edited"]], ids=["", "--dry-run", "--output"])
def test_what_fails_is_refused_in_words_and_nothing_changes(made: World, run: Any, options: list[str]) -> None:
    before = everything(made)
    gates = ["--require", "ES>=95%,GS>=0", "--require", "UNCHANGED>=0", "--protect", "protect.txt"]
    status, out, err = run("apply", "facts.jsonl", *gates, *options)
    assert status == ExitCode.REFUSED_BY_GATE
    assert everything(made) == before and not Path("edited").exists()
    for line in ("ES>=0.95      new facts          3", "ES>=0.95      earlier facts      2", "PROTECTED>=1  protected"):
        assert line in out
    assert "protected: 2 prompts of protect.txt" in out and "Applied" not in out
    assert "ES>=0.95 is 0." in err and " of 3 edit prompts of new facts, 0." in err and " short\n" in err
    assert "  'The capital of Babali is' gets '" in err and "not 'Lima'" in err
    assert "malmen: 2 gates do not hold (ES>=0.95, PROTECTED>=1), nothing was written\n  Leave out" in err


def test_json_has_the_figures_of_a_refusal_and_quiet_prints_nothing(made: World, run: Any) -> None:
    before = everything(made)
    status, out, err = run("apply", "facts.jsonl", "--require", "NEW_ES>=1,OLD_UNCHANGED>=0", "--json")
    assert status == ExitCode.REFUSED_BY_GATE and "malmen: 1 gate does not hold" in err
    said = json.loads(out)
    assert (said["entry"], said["output"], said["gates"]["hold"]) == (None, None, False)
    new, old = said["gates"]["gates"]
    assert (new["gate"], new["holds"], set(new["figures"])) == ("NEW_ES>=1", False, {"new"})
    assert new["figures"]["new"]["asked"] == 3 and new["figures"]["new"]["worst"][0]["wanted"] == "Lima"
    assert (old["gate"], old["holds"], set(old["figures"])) == ("OLD_UNCHANGED>=0", True, {"old"})
    status, out, _ = run("apply", "facts.jsonl", "--require", "ES>=1", "-q")
    assert (status, out) == (ExitCode.REFUSED_BY_GATE, "")
    assert everything(made) == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--require", "ES=0.9"], "at character 3"),
        (["--require", ""], "a gate is missing"),
        (["--require", "ES>=0.9", "--require", "es>=0.8"], "ES is given twice"),
        (["--require", "PROTECTED>=0.9"], "--protect FILE"),
        (["--protect", "nothing"], "cannot read nothing"),
        (["--protect", "facts.jsonl", "--protect", "empty"], "empty:1: no prompts in this file"),
    ],
)
def test_bad_gates_are_wrong_usage(made: World, run: Any, words: list[str], expected: str) -> None:
    Path("empty").write_text("\n")
    before = everything(made)
    status, out, err = run("apply", "facts.jsonl", *words)
    assert (status, out) == (ExitCode.USAGE, "") and expected in err
    assert everything(made) == before


def test_standard_input_is_read_once(run: Any) -> None:
    status, _, err = run("apply", "-", "--protect", "-")
    assert status == ExitCode.USAGE and "standard input can be read once" in err


def test_a_bad_expression_is_refused_before_torch_is_loaded(made: World) -> None:
    code = "import sys; sys.argv = ['malmen', 'apply', 'facts.jsonl', '--require', 'ES']\n"
    code += "from malmen_cli.__main__ import main\ntry: main()\nfinally: print(*sorted(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(), cwd=made.checkpoint.parent, capture_output=True, text=True)
    assert done.returncode == ExitCode.USAGE and "at character 3" in done.stderr
    assert "malmen_cli.cli.apply" in done.stdout.split() and "torch" not in done.stdout.split()


class TestPassing:
    @pytest.fixture
    def world(self, made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
        """One to write to: workspaces name their model's folder, so it is made anew."""
        world = make_world(tmp_path)
        for name in ("facts.jsonl", "protect.txt"):
            shutil.copy(made.checkpoint.parent / name, tmp_path)
        monkeypatch.chdir(tmp_path)
        return world

    def test_it_is_applied_recorded_and_shown(self, world: World, capfd: pytest.CaptureFixture[str]) -> None:
        gates = ["--require", "ES>=0,OLD_ES>=1,PROTECTED>=0%", "--protect", "protect.txt"]
        status, out, err = run_here(capfd, "apply", "facts.jsonl", *gates)
        assert status in DONE, err
        table = [line.split() for line in out.splitlines() if line.startswith(("ES>", "OLD_ES>", "PROTECTED>"))]
        assert [(line[0], line[-1]) for line in table] == [
            ("ES>=0", "holds"),
            ("OLD_ES>=1", "holds"),  # there are none, and none is wrong
            ("PROTECTED>=0", "holds"),
        ]
        assert "Applied as" in out
        status, shown, _ = run_here(capfd, "show")
        assert status == ExitCode.DONE
        assert [line.split() for line in shown.splitlines() if line.startswith(("ES>", "OLD", "PROTECTED>"))] == table
        assert "protected: 2 prompts of protect.txt" in shown
        _, shown, _ = run_here(capfd, "show", "--json")
        recorded = json.loads(shown)["details"]["gates"]
        assert recorded["hold"] and [gate["gate"] for gate in recorded["gates"]] == [
            "ES>=0",
            "OLD_ES>=1",
            "PROTECTED>=0",
        ]
        assert run_here(capfd, "verify")[0] == ExitCode.DONE
        # Nothing to do is no reason to refuse; that nothing was asked is said.
        status, out, err = run_here(capfd, "apply", "facts.jsonl", "--require", "ES>=1", "--json")
        assert status == ExitCode.DONE and "no gate was asked" in err and json.loads(out)["gates"] is None

    def test_a_saved_plan_is_gated_when_it_is_applied(self, world: World, capfd: pytest.CaptureFixture[str]) -> None:
        assert run_here(capfd, "plan", "facts.jsonl", "--quick", "-o", "plan.json", "-q")[0] == ExitCode.DONE
        before = everything(world)
        status, _, err = run_here(capfd, "apply", "--plan", "plan.json", "--require", "ES>=1")
        assert status == ExitCode.REFUSED_BY_GATE, err
        assert everything(world) == before
        assert run_here(capfd, "apply", "--plan", "plan.json", "--require", "ES>=0")[0] in DONE
