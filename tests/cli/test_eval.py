"""`malmen eval` as a user meets it: streams, statuses, JSON, where facts come from, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from tiny_models import Fact, World, environment, everything, make_facts, make_world, run_malmen, write_facts

from malmen_cli.cli.main import app
from malmen_cli.errors import ExitCode

QUICK = ("--max-new-tokens", "3")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """#2 applies facts 0 to 2, #3 facts 3 and 4, #4 takes fact 1 out again."""
    world = make_world(tmp_path_factory.mktemp("world"))
    world.apply(*make_facts(3))
    world.apply(*make_facts(2, start=3))
    world.revert("#2", 2)
    return world


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_facts(tmp_path_factory.mktemp("files") / "facts.jsonl", make_facts(6, start=10))


def printed(world: World, *arguments: str | Path) -> tuple[str, str]:
    """Standard output and standard error of a run that succeeds, in this process: torch is loaded only once."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        app(["eval", *map(str, arguments), "--workspace", str(world.workspace.root)], standalone_mode=False)
    return out.getvalue(), err.getvalue()


@cache
def told(world: World, *arguments: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed(world, *arguments, *QUICK, "--json", "--no-keep")[0])
    return found


def test_json_of_a_file(world: World, file: Path) -> None:
    found = told(world, file, "--n-edits", "4", "--seed", "2")
    assert found.keys() >= {
        *("entry", "model", "base", "editor", "source", "available", "n_edits", "seed", "scored", "edited"),
        *("asked", "left_out", "before", "after", "unchanged", "not_in_effect", "others", "facts", "warnings"),
        *("generate", "max_new_tokens", "device", "lent", "six_scores", "measures", "groups", "evaluation"),
        *("overlap", "overlap_option", "drift"),
    }
    assert (found["entry"], found["source"], found["seed"], found["max_new_tokens"]) == (None, "facts.jsonl", 2, 3)
    assert (found["available"], found["scored"], found["edited"], found["others"]) == (6, 4, 4, None)
    assert found["asked"] == {"edit": 4, "rephrase": 4, "unrelated": 4}
    for when in ("before", "after"):
        scores = found[when]
        assert scores.keys() == {"ES", "GS", "LS", "generated", "cut_off"}
        assert scores["generated"].keys() == scores["cut_off"].keys() == {"edit", "rephrase", "unrelated"}
    facts = found["facts"]
    assert len(facts) == 4
    assert facts[0].keys() == {"number", "digest", "prompt", "target", "edit", "rephrases", "unrelated"}
    said = {"answer", "accuracy", "generated", "stopped", "exact_match", "contains"}
    said |= {"new_probability", "old_probability"}
    assert facts[0]["edit"]["before"].keys() == facts[0]["edit"]["after"].keys() == said
    assert facts[0]["unrelated"][0]["unchanged"].keys() == {"teacher_forced", "generated"}


def test_facts_without_unrelated_prompts_are_asked_those_of_others(world: World, tmp_path: Path) -> None:
    bare = [replace(fact, unrelated=()) for fact in make_facts(9)]
    found = told(world, write_facts(tmp_path / "bare.jsonl", bare), "--n-edits", "4")
    assert found["lent"] == found["asked"]["unrelated"] == 4
    assert found["after"]["LS"] is not None
    edited = {fact["prompt"] for fact in found["facts"]}
    lent = {other["prompt"] for fact in found["facts"] for other in fact["unrelated"]}
    assert lent <= {fact.prompt for fact in bare} - edited
    assert {fact["digest"] for fact in found["facts"]} <= {fact.digest for fact in bare}
    all_edited = told(world, tmp_path / "bare.jsonl", "--n-edits", "9")
    assert (all_edited["lent"], all_edited["after"]["LS"]) == (0, None)


def test_another_dtype_is_tried_and_nothing_is_kept(world: World, file: Path) -> None:
    before = everything(world)
    narrow, wide = (told(world, file, "--dtype", dtype) for dtype in ("bfloat16", "float32"))
    assert narrow["asked"] == wide["asked"]
    assert everything(world) == before
    assert told(world, file)["facts"] == wide["facts"]


def test_json_of_an_entry(world: World) -> None:
    found = told(world, "#2", "--check-old", "1")
    entry, others = found["entry"], found["others"]
    assert (entry["number"], entry["kind"], entry["head"]) == (2, "apply", False)
    assert (others["active"], others["asked"]) == (2, 1)
    assert (found["available"], found["scored"], found["edited"]) == (3, 2, 4)
    assert [(fact["number"], fact["why"]) for fact in found["not_in_effect"]] == [(2, "reverted")]
    assert told(world, entry["short"])["after"] == found["after"]


def test_words(world: World, file: Path) -> None:
    out, err = printed(world, file, *QUICK, "--sample", "2", "--no-keep")
    assert err == ""
    assert out.startswith("6 facts of facts.jsonl, edited in memory from the base of tiny by editor ")
    assert sum(fact.prompt in out for fact in make_facts(6, start=10)) == 2
    rows = [line.split() for line in out.splitlines()]
    assert [row[0] for row in rows if row and row[0] in ("ES", "GS", "LS")] == ["ES", "GS", "LS"] * 2  # table, meaning
    assert "unchanged" in out and "teacher-forced" in out and "generated" in out
    assert "did not end within their cap (--max-new-tokens)" in out
    alone = write_facts(file.with_name("alone.jsonl"), [Fact("The capital of Spain is", "Rome")])
    assert "\nHarmonic mean of 2 scores, ES: " in printed(world, alone, *QUICK, "--no-keep")[0]
    assert "Harmonic mean of the six scores" in out and "contains" in out and "new over old" in out
    assert all(len(line) <= 100 for line in out.splitlines()[1:] if "->" in line or "[" in line)


def test_words_of_an_entry_name_what_is_left_out(world: World) -> None:
    out, err = printed(world, "#2", "--no-generate")
    assert out.startswith("2 of 3 facts of #2 ") and "on tiny as it stands with 4 active facts" in out
    assert "2 other active facts asked: ES " in out
    assert "1 of 3 facts are not in effect any more (1 reverted, 0 superseded): left out" in err
    assert "generated" not in out


@pytest.mark.parametrize(("asked", "told"), [("2", False), ("3", True), ("70", True)])
def test_of_an_entry_there_are_the_facts_in_effect(world: World, asked: str, told: bool) -> None:
    _, err = printed(world, "#2", "--no-generate", "--n-edits", asked, "--no-keep")
    assert (f"note: {asked} facts were asked for, and there are 2\n" in err) == told


def test_scores_that_nothing_was_asked_for_are_dashes(world: World, tmp_path: Path) -> None:
    file = write_facts(tmp_path / "bare.jsonl", [Fact("The capital of Bakeli is", "Rome")])
    out, _ = printed(world, file, *QUICK)
    [rephrases] = [line.split() for line in out.splitlines() if line.startswith("GS  rephrases")]
    assert rephrases == ["GS", "rephrases", "0", "-", "-"]
    after = told(world, file)["after"]
    assert after["GS"] is after["LS"] is after["generated"]["rephrase"] is None


def test_quiet_prints_the_facts_that_are_not_said(world: World, file: Path) -> None:
    wrong = [fact["digest"] for fact in told(world, file)["facts"] if fact["edit"]["after"]["accuracy"] < 1]
    assert wrong
    out, err = printed(world, file, "--no-generate", "-q")
    assert (out.split(), err) == (wrong, "")


def test_a_file_larger_than_what_the_editor_was_trained_for_is_sampled_in_words(world: World, tmp_path: Path) -> None:
    file = write_facts(tmp_path / "many.jsonl", make_facts(11))
    out, err = printed(world, file, "--no-generate")
    assert "8 of 11 facts of many.jsonl (seed 0)" in out
    assert "8 of them were drawn with seed 0 (--n-edits, --seed)" in err
    out, err = printed(world, file, "--no-generate", "--n-edits", "30")
    assert "11 facts of many.jsonl, edited" in out and "30 facts were asked for, and there are 11" in err


def test_of_a_file_there_are_the_facts_that_fit(world: World, tmp_path: Path) -> None:
    facts = make_facts(4)
    long = [replace(fact, prompt=f"{'Bakeli and ' * 99}{fact.prompt}") for fact in facts[:2]]
    file = write_facts(tmp_path / "long.jsonl", [*long, *facts[2:]])
    out, err = printed(world, file, "--no-generate", "--n-edits", "3", "--no-keep")
    assert "3 facts were asked for, and there are 2" in err and "left out: 2 edit" in err
    assert out.startswith("2 of 4 facts of ")
    assert "were asked for" not in printed(world, file, "--no-generate", "--n-edits", "2", "--no-keep")[1]


def test_standard_input_and_splits_are_as_good_as_the_file(world: World, file: Path) -> None:
    arguments = ["eval", "-", *QUICK, "--json", "--no-keep", "--workspace", str(world.workspace.root)]
    done = subprocess.run(
        [sys.executable, "-m", "malmen_cli", *arguments],
        input=file.read_text("utf-8"),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == ExitCode.DONE, done.stderr
    direct, piped = told(world, file), json.loads(done.stdout)
    assert piped["source"] == "-" and {**piped, "source": direct["source"]} == direct
    assert run_malmen(world, "data", "add", "held-out", file)[0] == ExitCode.DONE
    assert told(world, "--split", "held-out") == direct


def test_a_comma_after_the_only_name_is_none_of_it(world: World, file: Path) -> None:
    direct = told(world, file)
    for given in (("--editor", f"{direct['editor'][:10]},"), ("--method", "malmen,")):
        assert told(world, file, *given) == direct


def test_a_file_wins_over_an_entry_of_the_same_name(world: World, tmp_path: Path) -> None:
    write_facts(tmp_path / "HEAD", make_facts(1))
    assert told(world, tmp_path / "HEAD")["entry"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such-file.jsonl"], "neither a fact file that is there nor an entry"),
        (["#9"], "neither a fact file that is there nor an entry"),
        (["abcdef"], "neither a fact file that is there nor an entry"),
        (["."], "neither a fact file that is there nor an entry"),
        (["#4"], "revert entry and brought no facts"),
        (["#1"], "register entry and brought no facts"),
        ([], "nothing to evaluate is named"),
        (["--split", "nothing"], "nothing"),
        (["#2", "--split", "nothing"], "not from both"),
        (["#2", "--editor", "0123"], "--editor"),
        (["#2", "--format", "csv"], "--format"),
        (["#2", "--model", "unknown"], "unknown"),
        (["#2", "--n-edits", "0"], "--n-edits"),
        (["#2", "--max-new-tokens", "0"], "--max-new-tokens"),
    ],
)
def test_what_makes_no_sense_is_2_with_words(world: World, arguments: list[str], words: str) -> None:
    status, out, err = run_malmen(world, "eval", *arguments)
    assert (status, out) == (ExitCode.USAGE, "") and words in err


def test_an_unregistered_folder_is_named_with_the_command_and_stays_so(
    world: World, file: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(world.checkpoint, tmp_path / "other")
    status, out, err = run_malmen(world, "eval", file, "--model", folder)
    assert (status, out) == (ExitCode.USAGE, "") and "malmen models add" in err
    assert len(json.loads(run_malmen(world, "models", "list", "--json")[1])) == 1


def test_bad_lines_are_all_named(world: World, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "A is"}\n{"prompt": "B is", "target": "C"}\nnot json\n')
    status, out, err = run_malmen(world, "eval", tmp_path / "bad.jsonl")
    assert (status, out) == (ExitCode.USAGE, "")
    assert "bad.jsonl:1: " in err and "bad.jsonl:3: " in err and "bad.jsonl:2: " not in err


def test_a_changed_checkpoint_is_13(tmp_path: Path, file: Path) -> None:
    world = make_world(tmp_path / "world")
    path = world.checkpoint / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert run_malmen(world, "eval", file)[0] == ExitCode.WRONG_BASE


def test_facts_are_never_markup_nor_control(world: World, tmp_path: Path) -> None:
    file = write_facts(tmp_path / "facts.jsonl", [Fact("The [red]planet[/red] is \x1b[31m", "Rome")])
    out, _ = printed(world, file, *QUICK)
    assert "The [red]planet[/red] is \\x1b[31m" in out and "\x1b" not in out
