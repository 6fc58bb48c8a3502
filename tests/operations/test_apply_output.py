"""`apply --output DIR` writes an edited copy and leaves source, ledger and head alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from program import run_here
from safetensors_folders import file_digests
from tiny_models import World, everything, load, make_facts, make_world, run_malmen, write_facts

from malmen_cli.ledger import Ledger, Workspace


@pytest.fixture(params=["gpt2", "llama"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    family = request.param
    dtype = "bfloat16" if family == "llama" else "float32"
    world = make_world(tmp_path, family, sharded=family == "llama", dtype=dtype)
    world.apply(*make_facts(2))
    return world


def test_the_copy_is_what_the_apply_would_have_made(world: World, tmp_path: Path) -> None:
    facts = write_facts(tmp_path / "facts.jsonl", make_facts(3, start=1))  # one of them is active already
    before = everything(world)
    target = tmp_path / "edited"
    status, out, err = run_malmen(world, "apply", facts, "--output", target, "--json")
    assert status in (0, 3), err
    assert everything(world) == before
    said = json.loads(out)
    assert (said["entry"], said["output"], said["new"], said["active"]) == (None, str(target), 2, 4)
    status, out, err = run_malmen(world, "apply", facts, "-q")
    assert status in (0, 3), err
    weights = {name: digest for name, digest in file_digests(world.checkpoint).items() if "safetensors" in name}
    copied = file_digests(target)
    assert weights.items() <= copied.items()
    assert not [name for name in copied if name.startswith(".")]
    record = json.loads((target / "malmen.json").read_text())
    assert record["entry"] is None and record["facts"]["count"] == 4
    card = (target / "README.md").read_text()
    assert make_facts(1, start=1)[0].prompt in card and "malmen" in card
    a, b = load(target), load(world.checkpoint)
    texts = [a.tokenizing(fact.prompt, fact.target) for fact in make_facts(4)]
    for one, two in zip(a.batches(texts, 512), b.batches(texts, 512), strict=True):
        assert torch.equal(a.logits(one), b.logits(two))


def test_a_folder_that_is_there_is_refused_before_any_work(world: World, tmp_path: Path) -> None:
    facts = write_facts(tmp_path / "facts.jsonl", make_facts(1, start=7))
    target = tmp_path / "edited"
    target.mkdir()
    (target / "precious").write_text("mine")
    before = everything(world)
    status, out, err = run_malmen(world, "apply", facts, "--output", target)
    assert status == 2 and not out and str(target) in err
    assert [path.name for path in target.iterdir()] == ["precious"] and everything(world) == before


def test_dry_run_and_output_write_nothing(world: World, tmp_path: Path) -> None:
    facts = write_facts(tmp_path / "facts.jsonl", make_facts(1, start=7))
    before = everything(world)
    status, out, _ = run_malmen(world, "apply", facts, "--output", tmp_path / "edited", "--dry-run")
    assert status in (0, 3) and "nothing was written" in out
    assert not (tmp_path / "edited").exists() and everything(world) == before


@pytest.mark.parametrize("how", [("--dry-run",), ("--output", "edited")])
def test_neither_opens_the_ledger_for_writing(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    how: tuple[str, ...],
) -> None:
    facts = write_facts(tmp_path / "facts.jsonl", make_facts(1, start=7))
    opened: list[bool] = []
    whole = Ledger.open

    def noted(workspace: Workspace, *, writing: bool = False) -> Ledger:
        opened.append(writing)
        return whole(workspace, writing=writing)

    monkeypatch.setattr(Ledger, "open", noted)
    options = [tmp_path / part if part == "edited" else part for part in how]
    status, _, err = run_here(capfd, "apply", facts, *options, "--workspace", world.workspace.root)
    assert status in (0, 3), err
    assert opened and not any(opened)


def test_the_active_facts_alone_can_be_copied(world: World, tmp_path: Path) -> None:
    facts = write_facts(tmp_path / "facts.jsonl", make_facts(2))  # both are active already
    status, _, err = run_malmen(world, "apply", facts, "--output", tmp_path / "edited", "-q")
    assert status in (0, 3), err
    weights = {name: digest for name, digest in file_digests(world.checkpoint).items() if "safetensors" in name}
    assert weights.items() <= file_digests(tmp_path / "edited").items()
