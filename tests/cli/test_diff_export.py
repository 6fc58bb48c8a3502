"""`malmen diff` and `malmen export` as commands: exit statuses, streams, JSON, ids only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors_folders import file_digests, names_in
from tiny_models import (
    World,
    everything,
    make_fact,
    make_facts,
    make_world,
    run_malmen,
    save_tiny_model,
    write_facts,
)

from malmen_cli.errors import ExitCode
from malmen_cli.ledger import store
from malmen_cli.operations.models import register

EDITED = ["transformer.h.1.mlp.c_proj.weight", "transformer.h.2.mlp.c_proj.weight"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """#2 applies facts 0 to 2, #3 moves fact 1 to Oslo and adds fact 5."""
    world = make_world(tmp_path_factory.mktemp("world"))
    world.apply(*make_facts(3))
    world.apply(make_fact(1, "Oslo"), make_fact(5))
    return world


def head(world: World) -> str:
    with world.ledger() as (ledger, model), ledger.read() as db:
        return store.head(db, model.id).id


class TestDiff:
    def test_shows_facts_and_figures_on_stdout(self, world: World) -> None:
        status, out, err = run_malmen(world, "diff", "HEAD~1", "HEAD")
        assert (status, err) == (ExitCode.DONE, "")
        lines = out.splitlines()
        assert "1 fact added, 0 removed, 1 superseded, 2 the same; 2 tensors changed" in lines[0]
        assert any(line.startswith("+") and make_fact(5).prompt in line for line in lines)
        assert any(line.startswith("~") and line.endswith("Rome -> Oslo") for line in lines)
        assert [line.split()[0] for line in lines if line.startswith("transformer")] == EDITED

    @pytest.mark.parametrize(
        ("arguments", "status"),
        [
            ([], ExitCode.DIFFERS),
            (["HEAD"], ExitCode.DONE),
            (["HEAD~1"], ExitCode.DIFFERS),
            (["base", "#1"], ExitCode.DONE),
            (["#2", "#3"], ExitCode.DIFFERS),
        ],
    )
    def test_exit_code_says_whether_they_differ(self, world: World, arguments: list[str], status: int) -> None:
        done = run_malmen(world, "diff", *arguments, "--exit-code")
        assert done[0] == status
        assert bool(done[1]) == (status == ExitCode.DIFFERS)
        assert run_malmen(world, "diff", *arguments, "-q")[0] == ExitCode.DONE

    def test_json_has_everything(self, world: World) -> None:
        status, out, _ = run_malmen(world, "diff", "#2", "#3", "--json", "--predictions", "--top", "3", "--exit-code")
        assert status == ExitCode.DIFFERS
        found = json.loads(out)
        assert found.keys() == {
            *("model", "a", "b", "differs", "facts", "tensors", "files", "not_in_ledger", "pending", "predictions"),
        }
        assert found["differs"] is True
        assert (found["a"]["number"], found["b"]["number"], found["b"]["entry"]) == (2, 3, head(world))
        assert found["facts"]["superseded"][0]["to"]["target"] == "Oslo"
        assert [fact["prompt"] for fact in found["facts"]["added"]] == [make_fact(5).prompt]
        assert found["facts"]["common"] == 2
        for tensor in found["tensors"]:
            assert len(tensor["singular_values"]) == 3 and tensor["note"] is None
            assert tensor["relative_norm"] > 0 and 0 < tensor["share_moved"] <= 1
        answers = found["predictions"]["answers"]
        assert found["predictions"]["asked"] == len(answers) == 4 + 2 + 2
        assert found["predictions"]["changed"] == sum(answer["before"] != answer["after"] for answer in answers)
        assert (found["files"], found["not_in_ledger"], found["pending"]) == ([], [], None)

    def test_quiet_prints_the_names_of_tensors(self, world: World) -> None:
        assert run_malmen(world, "diff", "-q")[1].split() == EDITED
        assert run_malmen(world, "diff", "HEAD", "-q")[1] == ""

    def test_predictions_are_counted(self, world: World) -> None:
        _, out, _ = run_malmen(world, "diff", "#2", "#3", "--predictions", "--facts", "1")
        asked, answered = out.splitlines()[-1].split(", ")
        assert asked == "8 asked" and answered.endswith("answered otherwise")

    def test_a_tampered_checkpoint_is_named_on_stderr(self, tmp_path: Path) -> None:
        world = make_world(tmp_path)
        world.apply(*make_facts(2))
        path = world.checkpoint / "model.safetensors"
        with world.ledger() as (_, model):
            place = model.manifest.slot("transformer.h.0.ln_1.weight").start
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)
        status, out, err = run_malmen(world, "diff", "HEAD", "--exit-code")
        assert status == ExitCode.DIFFERS
        assert "transformer.h.0.ln_1.weight" in err and "not as the head" in err
        assert "never stored" in out

    def test_a_folder_that_is_gone_holds_no_facts(self, tmp_path: Path) -> None:
        world = make_world(tmp_path)
        world.apply(*make_facts(2))
        world.checkpoint.rename(tmp_path / "elsewhere")
        for arguments in ([], ["checkpoint", "HEAD"]):
            status, out, err = run_malmen(world, "diff", *arguments)
            assert (status, out) == (ExitCode.WRONG_BASE, "")
            assert "is gone" in err and "malmen models move tiny" in err
        assert run_malmen(world, "diff", "base", "HEAD", "--exit-code")[0] == ExitCode.DIFFERS

    @pytest.mark.parametrize("arguments", [["nonsense"], ["#9"], ["HEAD~9"], ["HEAD", "abcdef"]])
    def test_states_that_are_not_there(self, world: World, arguments: list[str]) -> None:
        status, out, err = run_malmen(world, "diff", *arguments)
        assert (status, out) == (ExitCode.USAGE, "") and "malmen log" in err


class TestExport:
    @pytest.mark.parametrize("kind", ["full", "delta", "lora"])
    def test_json_says_what_was_written(self, world: World, tmp_path: Path, kind: str) -> None:
        status, out, _ = run_malmen(world, "export", "--output", tmp_path / "out", "--as", kind, "--json")
        assert status == ExitCode.DONE
        told = json.loads(out)
        assert told.keys() == {
            *("model", "entry", "number", "kind", "output", "active_facts", "rank", "relative_error", "provenance"),
            "warnings",
        }
        assert (told["kind"], told["entry"], told["active_facts"]) == (kind, head(world), 4)
        assert (told["rank"] is None) == (kind != "lora")
        file = tmp_path / "out" / ("delta.json" if kind == "delta" else "malmen.json")
        assert json.loads(file.read_text()) == told["provenance"]
        assert sorted(told["provenance"]["tensors"]) == EDITED

    def test_in_words_and_quietly(self, world: World, tmp_path: Path) -> None:
        status, out, err = run_malmen(world, "export", "HEAD~1", "--as", "lora", "-o", tmp_path / "one", "--rank", "1")
        assert status == ExitCode.DONE
        assert out.startswith("Exported #2 ") and "rank 1" in out
        assert "warning: rank 1 keeps the shift" in err
        status, out, _ = run_malmen(world, "export", "-o", tmp_path / "two", "-q")
        assert (status, out) == (ExitCode.DONE, f"{head(world)}\n")

    @pytest.mark.parametrize(
        "arguments",
        [["base", "--as", "lora"], ["#1", "--as", "delta"], ["--rank", "3"], ["checkpoint"], ["--rank", "0"]],
    )
    def test_what_makes_no_sense_is_2_and_writes_nothing(
        self, world: World, tmp_path: Path, arguments: list[str]
    ) -> None:
        status, out, err = run_malmen(world, "export", *arguments, "--output", tmp_path / "out")
        assert (status, out) == (ExitCode.USAGE, "") and err
        assert names_in(tmp_path) == []

    @pytest.mark.parametrize("rank", [17, 9999, 10**12, 10**30])
    def test_a_rank_beyond_the_matrices_is_2(self, world: World, tmp_path: Path, rank: int) -> None:
        words = ("export", "--as", "lora", "--output", tmp_path / "out", "--rank", str(rank))
        status, out, err = run_malmen(world, *words)
        assert (status, out) == (ExitCode.USAGE, "") and "--rank 16" in err
        assert names_in(tmp_path) == []

    def test_a_folder_that_is_there_is_2(self, world: World, tmp_path: Path) -> None:
        (tmp_path / "mine").write_text("kept")
        assert run_malmen(world, "export", "--output", tmp_path)[0] == ExitCode.USAGE
        assert names_in(tmp_path) == ["mine"]

    def test_so_is_one_below_a_file(self, world: World, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("kept")
        status, out, err = run_malmen(world, "export", "--output", tmp_path / "file" / "out")
        assert (status, out) == (ExitCode.USAGE, "") and f"{tmp_path / 'file'} is not a folder" in err

    @pytest.mark.parametrize("command", ["export", "apply"])
    @pytest.mark.parametrize("inside", [".", "edited"])
    def test_the_models_own_folder_is_2(self, world: World, tmp_path: Path, command: str, inside: str) -> None:
        (tmp_path / "link").symlink_to(world.checkpoint)
        (tmp_path / "facts.jsonl").write_text('{"prompt": "The capital of Mali is", "target": "Rome"}\n')
        facts = [tmp_path / "facts.jsonl"] if command == "apply" else []
        before = names_in(world.checkpoint)
        status, out, err = run_malmen(world, command, *facts, "--output", tmp_path / "link" / inside)
        assert (status, out) == (ExitCode.USAGE, "") and "the model's own folder" in err
        assert names_in(world.checkpoint) == before

    @pytest.mark.parametrize("verb", ["export", "export --as delta", "apply", "plan", "eval", "report"])
    def test_so_is_the_workspace(self, world: World, tmp_path: Path, verb: str) -> None:
        before = everything(world)
        status, out, err = writes_to(world, tmp_path, verb, world.workspace.objects / "x")
        assert (status, out) == (ExitCode.USAGE, "") and f"lies in the workspace {world.workspace.root}" in err
        assert everything(world) == before

    @pytest.mark.parametrize("verb", ["export", "apply", "plan", "eval", "report"])
    def test_so_is_another_models_folder(self, two_models: World, tmp_path: Path, verb: str) -> None:
        other = two_models.checkpoint.with_name("second")
        before = file_digests(other)
        status, out, err = writes_to(two_models, tmp_path, verb, other / "vocab.txt")
        assert (status, out) == (ExitCode.USAGE, "") and f"the model's own folder {other}" in err
        assert file_digests(other) == before


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with a second model, whose folder is `second`."""
    world = make_world(tmp_path_factory.mktemp("two"))
    world.apply(*make_facts(1))
    with world.ledger() as (ledger, _):
        register(ledger, "second", save_tiny_model(world.checkpoint.with_name("second"), seed=1), command="models add")
    return world


def writes_to(world: World, folder: Path, verb: str, place: Path) -> tuple[int, str, str]:
    """Run a command that writes its result to `place`."""
    facts = write_facts(folder / "facts.jsonl", make_facts(2, start=7))
    words = {
        "export": ["export", "--output", place],
        "export --as delta": ["export", "--as", "delta", "--output", place],
        "apply": ["apply", facts, "--output", place],
        "plan": ["plan", facts, "--output", place],
        "eval": ["eval", facts, "--failed", place],
        "report": ["eval", facts, "--report", place],
    }
    return run_malmen(world, *words[verb], "--model", "tiny")
