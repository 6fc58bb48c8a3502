"""What is refused is refused before a byte is written, as Python calls too: editors and commands that cannot be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from program import run_here
from refusal_world import RefusalWorld
from tiny_models import (
    TINY_TRAINING,
    World,
    environment,
    everything,
    fact_set,
    make_fact,
    make_facts,
    make_world,
    save_tiny_model,
    write_facts,
)

from malmen_cli.checkpoint.digests import digest_bytes
from malmen_cli.errors import BadFacts, ExitCode, MalmenError
from malmen_cli.ledger import ensure_base_objects, store
from malmen_cli.operations.apply import ApplyOptions, apply_facts
from malmen_cli.operations.models import register
from malmen_cli.operations.train import train_editor


@pytest.fixture
def tiny(world: RefusalWorld) -> World:
    return world.world()


@contextmanager
def refused(world: World, exit_code: ExitCode, reason: str) -> Iterator[None]:
    """The body must raise this refusal, with a remedy, and change no file."""
    before = everything(world)
    with pytest.raises(MalmenError, match=reason) as refusal:
        yield
    assert refusal.value.exit_code == exit_code
    assert refusal.value.remedy
    assert everything(world) == before


class TestEditors:
    def test_of_another_model_of_the_workspace(self, tiny: World, world: RefusalWorld) -> None:
        with tiny.ledger() as (ledger, _):
            folder = save_tiny_model(world.home / "second", seed=1)
            second = register(ledger, "second", folder).model
            editor = train_editor(ledger, second, fact_set(make_facts(12)), TINY_TRAINING).record
        with refused(tiny, ExitCode.USAGE, "belongs to another model"):
            tiny.apply(make_fact(7), editor=editor.id)

    def test_beside_the_one_in_force(self, tiny: World, world: RefusalWorld) -> None:
        with refused(tiny, ExitCode.USAGE, "never mixed"):
            tiny.apply(make_fact(7), editor=world.other_editor)
        tiny.revert("HEAD")
        tiny.revert("HEAD~2")
        # From the base the newest editor is the default.
        assert tiny.apply(make_fact(7)).proposal.editor.id == world.other_editor

    def test_none_at_all(self, world: RefusalWorld) -> None:
        (world.home / "bare").mkdir()
        bare = make_world(world.home / "bare", training=None)
        with refused(bare, ExitCode.USAGE, "has no editor yet"):
            bare.apply(make_fact(7))


class TestCommands:
    def test_while_another_process_writes(self, tiny: World) -> None:
        hold = f"""
from pathlib import Path
from malmen_cli.checkpoint.lock import checkpoint_lock
with checkpoint_lock(Path({str(tiny.checkpoint)!r}), "malmen apply theirs.jsonl"):
    print("held", flush=True)
    input()
"""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen([sys.executable, "-c", hold], env=environment(), **pipes) as holder:
            assert holder.stdout.readline() == "held\n"
            with refused(tiny, ExitCode.LOCKED, "malmen apply theirs.jsonl"):
                tiny.apply(make_fact(7))
            with refused(tiny, ExitCode.LOCKED, "malmen apply theirs.jsonl"):
                tiny.revert("HEAD")
            holder.communicate("\n")
        assert tiny.apply(make_fact(7)).entry is not None

    @pytest.mark.parametrize("device", ["nonsense", "meta", "cuda:77"])
    def test_on_a_device_that_is_not_there(
        self, world: RefusalWorld, device: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        before = everything(world.world())
        for command in ("apply", "revert HEAD~1"):
            status, _, err = run_here(capfd, *world.arguments(command), "--device", device)
            assert status == ExitCode.USAGE and f"device {device}" in err
        assert everything(world.world()) == before

    def test_on_a_device_that_has_no_such_name_where_none_is_needed(
        self, world: RefusalWorld, capfd: pytest.CaptureFixture[str]
    ) -> None:
        before = everything(world.world())
        for command in (["revert", "HEAD"], ["diff", "HEAD", "HEAD"]):
            words = [*command, "--device", "nonsense", "--workspace", world.workspace]
            status, out, err = run_here(capfd, *words)
            assert (status, out) == (ExitCode.USAGE, "") and "device nonsense" in err
        assert everything(world.world()) == before

    def test_with_facts_that_contradict_each_other(
        self, world: RefusalWorld, capfd: pytest.CaptureFixture[str]
    ) -> None:
        write_facts(world.home / "facts.jsonl", [make_fact(7, "Rome"), make_fact(8), make_fact(7, "Paris")])
        before = everything(world.world())
        status, out, err = run_here(capfd, *world.arguments("apply"))
        assert (status, out) == (ExitCode.USAGE, "")
        assert "facts.jsonl:3: " in err
        assert everything(world.world()) == before

    def test_with_a_fact_too_long_for_the_model(self, tiny: World) -> None:
        long = "Rome and " * 40 + "Lima"
        with refused(tiny, ExitCode.USAGE, "^1 fact does not fit the model, nothing was written$"):
            tiny.apply(make_fact(7), make_fact(8, long))
        with pytest.raises(BadFacts, match=r"^2 facts do not fit the model") as caught:
            tiny.apply(make_fact(8, long), make_fact(7), make_fact(9, long))
        for index, problem in zip((8, 9), caught.value.problems, strict=True):
            assert make_fact(index).prompt in problem and problem.count("'") == 2
            assert "tokens where the model has 64 positions: '" in problem

    @pytest.mark.parametrize(
        ("arguments", "reason"), [(("#1",), "register"), (("HEAD", 4), "facts 1 to 3"), (("#9",), "no entry")]
    )
    def test_to_revert_what_is_not_there(self, tiny: World, arguments: tuple[str, int], reason: str) -> None:
        with refused(tiny, ExitCode.USAGE, reason):
            tiny.revert(*arguments)

    def test_a_dry_run_writes_nothing_either(self, tiny: World) -> None:
        before = everything(tiny)
        with tiny.ledger() as (ledger, model):
            options = ApplyOptions(dry_run=True, sample=1)
            applied = apply_facts(ledger, model, fact_set([make_fact(7)]), options, "malmen apply --dry-run")
        assert applied.entry is None
        assert applied.check is not None
        assert everything(tiny) == before


def test_base_tensors_that_were_not_stored_are_read_only_from_an_unedited_checkpoint(tiny: World) -> None:
    """The ledger's own guard: were an edited tensor taken for the base, every later edit would start from W0 + S."""
    tensor = "transformer.h.2.mlp.c_proj.weight"
    with tiny.ledger() as (ledger, model):
        digest = model.manifest.tensors[tensor].digest
        path = ledger.objects.path(digest)
        data = path.read_bytes()
        path.unlink()
        with pytest.raises(MalmenError, match="is not as it is in the base"):
            ensure_base_objects(ledger, model, [tensor])
        assert digest_bytes(data) == digest
        ledger.objects.put_many([data])
        with ledger.read() as db:
            assert store.state(db, model.id)[tensor] != digest
