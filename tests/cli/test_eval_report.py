"""`malmen eval` of several numbers of facts, as a user meets it: the folder, words, JSON, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from tiny_models import Fact, World, everything, fact_set, make_facts, make_world, write_facts

from malmen_cli.cli.eval_report import numbers, report_comparison
from malmen_cli.cli.main import app
from malmen_cli.errors import UsageError
from malmen_cli.evaluation.comparison import SCHEMA, Comparison
from malmen_cli.operations.evaluated import EvaluationOptions

FILES = {
    *("report.html", "report.md", "report.json"),
    *(f"{name}.{ending}" for name in ("curve", "harmonic_mean", "paper") for ending in ("png", "svg")),
}
NASTY = Fact("The <script>alert(1)</script> [red]of[/red] | \x1b[31m is", "Rome")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = make_world(tmp_path_factory.mktemp("world"))
    world.apply(*make_facts(2))
    return world


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_facts(tmp_path / "facts.jsonl", [*make_facts(5, start=10), NASTY])


def printed(world: World, *arguments: str | Path) -> tuple[str, str]:
    """Standard output and standard error of a run that succeeds, in this process."""
    out, err = StringIO(), StringIO()
    quick = () if "--no-generate" in arguments else ("--max-new-tokens", "3")
    place = ("--workspace", str(world.workspace.root))
    with redirect_stdout(out), redirect_stderr(err):
        app(["eval", *map(str, arguments), *quick, *place], standalone_mode=False)
    return out.getvalue(), err.getvalue()


@contextmanager
def refused(world: World, words: str) -> Iterator[None]:
    """UsageError with these words, and nothing changed."""
    before = everything(world)
    with pytest.raises(UsageError) as caught:
        yield
    assert words in caught.value.message and caught.value.remedy
    assert everything(world) == before


def test_the_folder_that_nobody_named_is_not_the_models_either(
    world: World, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (world.checkpoint, world.workspace.objects):
        monkeypatch.chdir(place)
        with refused(world, "lies in the"):
            printed(world, file, "--n-edits", "2,3", "--no-generate")


def test_several_numbers_make_a_report(
    world: World, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = everything(world)
    out, err = printed(world, file, "--n-edits", "4, 2,99", "--seed", "0,1")
    assert everything(world) == before
    [folder] = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert re.fullmatch(r"malmen-eval-tiny-\d{4}-\d\d-\d\d", folder.name)
    assert {path.name for path in folder.iterdir()} == FILES
    assert out.startswith("tiny: 2 to 6 facts of facts.jsonl, edited in memory from the base\n")
    rows = [line.split() for line in out.splitlines() if line.startswith("malmen ")]
    assert [row[1] for row in rows] == ["2", "4", "6"] and all(len(row) >= 9 for row in rows)
    assert out.rstrip().endswith(f"Report: {folder.name}/report.html")
    assert max(map(len, out.splitlines())) <= 100
    assert len(re.findall(r"^malmen, \d facts, seed [01]: harmonic mean \d\.\d{3}$", err, re.MULTILINE)) == 5
    assert "note: 99 facts were asked for, and there are 6" in err
    assert "note: 6 facts are all that there are to draw from: one draw, with one seed." in err
    page = (folder / "report.html").read_text("utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt; [red]of[/red] | \\x1b[31m is" in page and "<script>" not in page
    for name in FILES:
        if name.endswith(".png"):
            assert (folder / name).read_bytes().startswith(b"\x89PNG")
    # What is asked for again is there already.
    again, err = printed(world, file, "--n-edits", "2,4,99", "--seed", "0,1", "-q")
    assert again == f"{folder.name}/report.html\n" and err.count("harmonic mean") == 0
    # Of other questions on the same day each has a folder of its own, and finds it again.
    for number, sizes in ((2, "1,2"), (3, "1,3"), (2, "1,2")):
        other, _ = printed(world, file, "--n-edits", sizes, "--no-generate", "-q")
        assert other == f"{folder.name}-{number}/report.html\n"
    assert len(list(tmp_path.glob("malmen-eval-*"))) == 3


def test_json(world: World, file: Path, tmp_path: Path) -> None:
    out, _ = printed(world, file, "--n-edits", "3", "--report", tmp_path / "r", "--json")
    found = json.loads(out)
    assert found.keys() == {"report", "files", "schema", "question", "about", "notes", "points", "failed"}
    assert found["schema"] == SCHEMA and set(found["files"]) == FILES
    kept = json.loads((tmp_path / "r" / "report.json").read_text())
    assert {name: found[name] for name in kept} == kept
    [point] = kept["points"]
    assert point["scores"].keys() == {"reliability", "generalisation", "locality", "harmonic_mean"}
    assert point["scores"]["reliability"]["teacher_forced"].keys() == {"value", "low", "high"}
    assert kept["question"]["contenders"][0]["label"] == "malmen"
    assert kept["about"]["versions"].keys() >= {"malmen", "torch"}


def test_methods_are_compared(world: World, file: Path, tmp_path: Path) -> None:
    out, _ = printed(
        world, file, "--n-edits", "3", "--method", "malmen,ft", "--report", tmp_path / "r", "--no-generate"
    )
    assert [line.split()[0] for line in out.splitlines() if line.startswith(("malmen ", "ft "))] == ["malmen", "ft"]
    assert "R g" not in out
    comparison = Comparison.from_json((tmp_path / "r" / "report.json").read_bytes())
    assert comparison.labels == ["malmen", "ft"] and not comparison.generated


def test_without_matplotlib_nothing_is_computed(
    world: World, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with refused(world, "needs matplotlib and jinja2") as _:
        printed(world, file, "--n-edits", "2,4", "--report", tmp_path / "r")
    assert not (tmp_path / "r").exists()
    # One number alone needs none.
    assert printed(world, file, "--n-edits", "2", "--no-generate", "--no-keep")[0]


def test_what_makes_no_sense_is_refused(world: World, file: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (["HEAD", "--n-edits", "2,4"], "an entry is none"),
        (["HEAD", "--report", "r"], "an entry is none"),
        ([file, "--n-edits", "2,4", "--failed", tmp_path / "failed.jsonl"], "--failed is for one number"),
        ([file, "--n-edits", "2,4", "--by", "tag", "--check-old", "3"], "--check-old, --by have no part in a report"),
        ([file, "--n-edits", "2,4", "--no-keep"], "--no-keep has no part in a report"),
        ([file, "--n-edits", "2,4", "--keep"], "--keep has no part in a report"),
        ([file, "--check-old", "3"], "--check-old has no part in evaluating a file's facts"),
        (["HEAD", "--overlap", "keep"], "--overlap has no part in evaluating an entry"),
        ([file, "--method", ""], "--method names nothing: ''"),
        ([file, "--n-edits", "2,4", "--editor", " ,"], "--editor names nothing: ' ,'"),
        ([file, "--n-edits", "2,x"], "--n-edits takes a number of 1 or more"),
        ([file, "--n-edits", "2,4", "--seed", "-1"], "--seed takes a number of 0 or more"),
        ([file, "--n-edits", "2,4", "--report", file], "is no folder"),
        ([file, "--n-edits", "2,4", "--report", tmp_path], "holds no report"),
    ):
        with refused(world, words):
            printed(world, *arguments)


@pytest.mark.parametrize(("text", "found"), [("16", [16]), ("64,16", [16, 64]), (" 1 , 2,2 ", [1, 2])])
def test_numbers(text: str, found: list[int]) -> None:
    assert numbers(text, "--n-edits", smallest=1) == found


@pytest.mark.parametrize("text", ["", ",", "0", "1,", "-1", "1e3", "\u0663", "9" * 19])
def test_what_is_no_list_of_numbers(text: str) -> None:
    with pytest.raises(UsageError, match="--n-edits takes"):
        numbers(text, "--n-edits", smallest=1)


def test_what_was_made_before_an_interruption_is_drawn(world: World, tmp_path: Path) -> None:
    def progress(what: str, done: int, total: int) -> None:
        if what.startswith("asking malmen at 4"):
            raise KeyboardInterrupt

    options = EvaluationOptions(max_new_tokens=3, progress=progress)
    folder = tmp_path / "r"
    with world.ledger() as (ledger, model), redirect_stderr(StringIO()) as err, pytest.raises(KeyboardInterrupt):
        report_comparison(ledger, model, fact_set(make_facts(6)), [], [], [2, 4, 6], [0], options, folder)
    assert "has the points made so far" in err.getvalue()
    assert {path.name for path in folder.iterdir()} == FILES
    assert "This report is not finished: 1 of 3 points." in (folder / "report.html").read_text("utf-8")
