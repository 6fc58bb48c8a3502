"""A classifier's targets: any spelling of its classes, in every count; and facts that name none, told as such."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from family_journey import make_family_world, told
from program import run_here
from tiny_models import Fact, World, make_claims, make_facts, write_facts

from malmen_cli.errors import ExitCode

SPELLINGS = ("SUPPORTS", "true", "1", "Yes", "REFUTES", "false", "0", "refuted")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """#2 applies one claim per spelling."""
    world = make_family_world(tmp_path_factory.mktemp("world"), "bert")
    claims = make_claims(len(SPELLINGS))
    world.apply(*(Fact(claim.prompt, target) for claim, target in zip(claims, SPELLINGS, strict=True)))
    return world


def test_free_answers_count_whatever_the_spelling(world: World) -> None:
    report = told(world, "eval", "HEAD")
    for when in ("before", "after"):
        assert report[when]["generated"]["edit"] == report[when]["ES"]
        for number, fact in enumerate(report["facts"]):
            said = fact["edit"][when]
            right = said["generated"] == ("SUPPORTS" if number < 4 else "REFUTES")
            assert said["exact_match"] == right == (said["accuracy"] == 1)
    # A control: one model that answers differently in the two states, or to two claims, has some right and some wrong.
    assert {fact["edit"]["after"]["exact_match"] for fact in report["facts"]} == {True, False}


@pytest.mark.parametrize("verb", ["train", "eval", "plan", "apply"])
def test_targets_that_name_no_class_are_refused_by_name(
    world: World, verb: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write_facts(tmp_path / "cities.jsonl", make_facts(12))
    flags = ["--steps", "1"] if verb == "train" else []
    status, out, err = run_here(capfd, verb, file, *flags, "--workspace", world.workspace.root)
    assert (status, out) == (ExitCode.USAGE, "")
    assert "names none of the model's classes" in err
    assert "Targets of this model are REFUTES, SUPPORTS." in err


def test_claims_in_the_published_layout_are_read(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    row = {
        "prompt": "Rome is a city.",
        "equiv_prompt": ["A city is Rome."],
        "unrel_prompt": "Lima is old.",
        "alt": "REFUTES",
        "unrel_ans": "SUPPORTS",
    }
    (tmp_path / "fever.json").write_text(json.dumps([row]), "utf-8")
    status, out, _ = run_here(
        capfd, "plan", tmp_path / "fever.json", "--quick", "--json", "--workspace", world.workspace.root
    )
    assert status == ExitCode.DONE
    assert json.loads(out)["new"] == 1
