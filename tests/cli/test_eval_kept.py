"""What `malmen eval` keeps and shows again, the files that it reads and writes beside, and its notes on overlap."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path

import pytest
from test_eval import QUICK, printed
from tiny_models import Fact, World, everything, make_facts, make_world, run_malmen, write_facts

from malmen_cli.errors import ExitCode
from malmen_cli.facts import read_fact_set
from malmen_cli.ledger import Ledger, store
from malmen_cli.ledger.connection import connect


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = make_world(tmp_path_factory.mktemp("world"))
    world.apply(*make_facts(3))
    return world


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_facts(tmp_path / "facts.jsonl", make_facts(6, start=10))


def shown(world: World, *arguments: str | Path) -> str:
    return printed(world, *arguments)[0]


def ids(world: World) -> list[str]:
    return shown(world, "--list", "-q").split()


def test_an_evaluation_is_kept_and_shown_again(world: World, file: Path) -> None:
    before = everything(world)
    out, err = printed(world, file, *QUICK, "--json")
    found = json.loads(out)
    assert f"note: kept as evaluation {found['evaluation'][7:17]}" in err
    assert ids(world)[0] == found["evaluation"]
    [listed, *_] = json.loads(shown(world, "--list", "--json"))
    assert (listed["id"], listed["source"], listed["scored"], listed["entry"]) == (
        found["evaluation"],
        "facts.jsonl",
        6,
        None,
    )
    again = json.loads(shown(world, "--show", found["evaluation"][7:13], "--json"))
    assert again["facts"] == found["facts"]
    scores = again["details"]["scores"]
    assert scores["six_scores"] == found["six_scores"] and scores["after"] == found["after"]
    assert again["details"]["versions"].keys() >= {"malmen", "torch"}
    # The ledger alone has grown: no checkpoint, no object, no editor.
    after = everything(world)
    assert {name for name in after.keys() | before.keys() if after.get(name) != before.get(name)} <= {
        "workspace/ledger.db",
        "workspace/ledger.db-wal",
        "workspace/ledger.db-shm",
    }
    status, _, err = run_malmen(world, "verify")
    assert status == ExitCode.DONE and "evaluation" in err


def test_draws_and_dtypes_are_told_apart(world: World, file: Path) -> None:
    for options in (("--n-edits", "3", "--seed", "7"), ("--dtype", "bfloat16")):
        printed(world, file, *QUICK, *options)
    plain, drawn = shown(world, "--list").splitlines()[1:3]
    assert "facts.jsonl, bfloat16 " in plain and "facts.jsonl, seed 7 " in drawn
    assert "facts.jsonl, seed 7" in shown(world, "--show", ids(world)[1])


def test_the_chain_stays(world: World) -> None:
    with Ledger.open(world.workspace) as ledger, ledger.read() as db:
        before = store.entries(db)
    printed(world, "HEAD", "--no-generate")
    with Ledger.open(world.workspace) as ledger, ledger.read() as db:
        assert store.entries(db) == before
    out = shown(world, "--list")
    assert f"entry {before[0].id[7:17]}" in out
    assert f"entry {before[0].id[7:17]}" in shown(world, "--show", ids(world)[0])


def test_nothing_is_written_where_that_is_asked_for(world: World, file: Path) -> None:
    before, kept = everything(world), ids(world)
    out, err = printed(world, file, *QUICK, "--no-keep", "--json")
    assert json.loads(out)["evaluation"] is None and "kept" not in err
    assert everything(world) == before and ids(world) == kept


def test_a_ledger_that_cannot_be_written_is_a_note(world: World, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("malmen_cli.ledger.connection.BUSY_TIMEOUT", 0.1)
    kept = ids(world)
    with closing(connect(world.workspace.database, writing=True)) as other:
        other.execute("BEGIN IMMEDIATE")
        out, err = printed(world, file, "--no-generate", "--json")
    assert "note: the evaluation could not be kept: " in err and "is busy with another process" in err
    assert json.loads(out)["evaluation"] is None and json.loads(out)["asked"]["edit"] == 6
    assert ids(world) == kept


def test_gc_forgets_them(tmp_path: Path, file: Path) -> None:
    world = make_world(tmp_path / "world")
    printed(world, file, "--no-generate")
    assert len(ids(world)) == 1
    for arguments, left in ((("--leftovers", "--states"), 1), (("--evaluations",), 0)):
        assert run_malmen(world, "gc", *arguments, "--yes")[0] == ExitCode.DONE
        assert len(ids(world)) == left
    assert printed(world, "--list") == ("", "There are no evaluations yet.\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--show", "0000"], "there is no evaluation"),
        (["--show", "HEAD"], "there is no evaluation"),
        (["HEAD", "--list"], "FILE|ID has no part in --list or --show, which evaluate nothing"),
        (["--list", "--failed", "failed.jsonl", "--n-edits", "3"], "--n-edits, --failed have no part in --list"),
        (["--show", "0000", "--split", "few"], "evaluate nothing"),
        (["--show", "0000", "--list", "--model", "tiny"], "--model, --list have no part in --show"),
        (["HEAD", "--force"], "--force has no part in an evaluation without --failed"),
        (["HEAD", "--no-generate", "--max-new-tokens", "3"], "--max-new-tokens has no part in --no-generate"),
        (["HEAD", "--drift", "no-such.txt"], "cannot read no-such.txt"),
        (["HEAD", "--drift", "."], "cannot read ."),
        (["HEAD", "--failed", "no-such-folder/failed.jsonl"], "cannot be a file"),
        (["HEAD", "--overlap", "drop"], "--overlap"),
        (["HEAD", "--by", "colour"], "--by"),
    ],
)
def test_what_makes_no_sense_is_2_with_words(world: World, arguments: list[str], words: str) -> None:
    status, out, err = run_malmen(world, "eval", *arguments)
    assert (status, out) == (ExitCode.USAGE, "") and words in err


def test_text_that_is_none_is_refused(world: World, tmp_path: Path) -> None:
    for data, words in ((b"\xff\xfe\x00", "not UTF-8"), (b" \n", "holds no text")):
        (tmp_path / "text").write_bytes(data)
        status, _, err = run_malmen(world, "eval", "HEAD", "--drift", tmp_path / "text")
        assert status == ExitCode.USAGE and words in err


def test_drift_is_shown(world: World, file: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The capital of Bakeli is Rome, and the sea begins there. " * 20)
    out, _ = printed(world, file, "--no-generate", "--drift", tmp_path / "text.txt", "--no-keep")
    [line] = [line for line in out.splitlines() if line.startswith("Perplexity of text.txt")]
    assert " times [" in line
    found = json.loads(shown(world, file, "--no-generate", "--drift", tmp_path / "text.txt", "--no-keep", "--json"))
    assert found["drift"]["perplexity"].keys() == {"before", "after"} and found["drift"]["chunks"] > 1


class TestFailed:
    def test_facts_that_failed_are_a_fact_file(self, world: World, file: Path, tmp_path: Path) -> None:
        out, err = printed(world, file, *QUICK, "--no-keep", "--json", "--failed", tmp_path / "failed.jsonl")
        wanted = [
            fact["digest"]
            for fact in json.loads(out)["facts"]
            if fact["edit"]["after"]["accuracy"] < 1 or not fact["edit"]["after"]["exact_match"]
        ]
        assert wanted and f"note: {len(wanted)} facts that failed" in err
        assert [fact.digest for fact in read_fact_set(tmp_path / "failed.jsonl").facts] == wanted

    def test_another_file_is_replaced_only_by_force(self, world: World, file: Path, tmp_path: Path) -> None:
        there = tmp_path / "there"
        there.write_text("mine")
        status, _, err = run_malmen(world, "eval", file, "--failed", there)
        assert status == ExitCode.USAGE and "is there already" in err and there.read_text() == "mine"
        printed(world, file, "--no-generate", "--no-keep", "--failed", there, "--force")
        assert len(read_fact_set(there).facts) > 0
        assert there.stat().st_mode & 0o777 == 0o666 & ~_umask()

    def test_a_device_is_not_replaced_by_a_file(self, world: World, file: Path, tmp_path: Path) -> None:
        (tmp_path / "null").symlink_to("/dev/null")
        status, _, err = run_malmen(world, "eval", file, "--failed", tmp_path / "null", "--force")
        assert status == ExitCode.USAGE and "cannot be a file" in err and (tmp_path / "null").is_symlink()

    def test_lent_prompts_are_not_written(self, world: World, tmp_path: Path) -> None:
        bare = [Fact(fact.prompt, fact.target) for fact in make_facts(9)]
        file = write_facts(tmp_path / "bare.jsonl", bare)
        printed(world, file, "--n-edits", "4", "--no-generate", "--no-keep", "--failed", tmp_path / "failed.jsonl")
        failed = read_fact_set(tmp_path / "failed.jsonl").facts
        assert failed and set(failed) <= set(bare)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_overlap_is_told(world: World, tmp_path: Path) -> None:
    file = write_facts(tmp_path / "facts.jsonl", [*make_facts(24, start=4000), *make_facts(2)])
    found, err = printed(world, file, "--no-generate", "--no-keep", "--json", "--n-edits", "30")
    overlap = json.loads(found)["overlap"]
    assert overlap["left_out"] == overlap["same_prompt"] > 0
    assert f"note: {overlap['left_out']} facts with a prompt of the editor's training: left out" in err
    assert f"note: 30 facts were asked for, and there are {26 - overlap['left_out']}" in err
    found, err = printed(world, file, "--no-generate", "--no-keep", "--json", "--n-edits", "30", "--overlap", "keep")
    kept = json.loads(found)
    assert kept["scored"] == 26 and kept["overlap"]["left_out"] == 0 and "scored all the same" in err
    assert "unrelated prompts of the editor's training among those asked" in err
    assert kept["overlap_option"] == "keep" and "scores them apart" in err


def test_groups_are_shown_the_worst_first(world: World, tmp_path: Path) -> None:
    file = write_facts(tmp_path / "facts.jsonl", make_facts(48, start=100))
    out = shown(world, file, "--no-generate", "--no-keep", "--n-edits", "48", "--by", "target", "--sample", "0")
    assert "worst first" in out and len([line for line in out.splitlines() if line.startswith("Rome ")]) == 1
    assert "worst first" not in shown(world, file, "--no-generate", "--no-keep", "--n-edits", "8")  # no tags
