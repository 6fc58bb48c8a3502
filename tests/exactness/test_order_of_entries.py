"""The checkpoint is a function of the base, the active facts and the editor: the order of entries leaves no trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors_folders import file_digests
from shifts import difference, weights
from tiny_models import World, load, make_facts, make_world

from malmen_cli.ledger import verify_ledger
from malmen_cli.operations.editors import load_editor
from malmen_cli.operations.models import load_base
from malmen_cli.operations.rows import capture_rows

A, B = make_facts(5), make_facts(4, start=5)
KINDS = [
    ("gpt2", "float32", False),
    ("gpt2", "bfloat16", True),
    ("llama", "float32", True),
    ("llama", "bfloat16", False),
    ("llama", "float16", True),
]


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}-{'sharded' if kind[2] else 'single'}")
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    family, dtype, sharded = request.param
    return make_world(tmp_path, family, dtype=dtype, sharded=sharded)


def weight_files(world: World) -> dict[str, str]:
    return {name: digest for name, digest in file_digests(world.checkpoint).items() if name.endswith(".safetensors")}


def test_entries_without_a_shared_prompt_commute_bit_for_bit(world: World) -> None:
    start, base = file_digests(world.checkpoint), weights(world)
    world.apply(*A)
    only_a = weight_files(world)
    world.apply(*B)
    a_then_b, edited = weight_files(world), weights(world)
    assert a_then_b.keys() == only_a.keys()
    assert len({tuple(files.values()) for files in (start, only_a, a_then_b)}) == 3

    world.revert("HEAD~1")  # an older entry: what remains is B alone, which never was
    only_b = weight_files(world)
    world.revert("HEAD~1")
    assert file_digests(world.checkpoint) == start  # nothing is left, no sidecar either

    world.apply(*B)  # rows of A and B are stored by now: the order of solving is what is tried here
    assert weight_files(world) == only_b
    world.apply(*A)
    assert weight_files(world) == a_then_b

    base_dtype = next(iter(base.values())).dtype
    world.revert("HEAD")
    assert weight_files(world) == only_b  # reverting the newest entry restores the earlier bytes
    world.revert("#6")
    assert file_digests(world.checkpoint) == start
    assert all(edited[name].dtype == base_dtype and not torch.equal(edited[name], base[name]) for name in base)
    with world.ledger() as (ledger, _):
        assert verify_ledger(ledger).problems == []


@pytest.mark.parametrize(("family", "dtype", "sharded"), KINDS)
def test_fresh_workspaces_agree_whatever_the_order_and_the_files(
    tmp_path: Path, family: str, dtype: str, sharded: bool
) -> None:
    """Every world captures its own rows: A then B, B then A, and both in one file, where batches differ."""
    found = []
    for name, fact_sets in {"ab": [A, B], "ba": [B, A], "one": [[*A, *B]], "other": [[*B, *A]]}.items():
        (tmp_path / name).mkdir()
        world = make_world(tmp_path / name, family, dtype=dtype, sharded=sharded)  # type: ignore[arg-type]
        base = weights(world)
        for facts in fact_sets:
            world.apply(*facts)
        found.append(weights(world))
    ab, ba, one, other = found
    assert all(torch.equal(ab[name], ba[name]) for name in base)
    assert all(torch.equal(one[name], other[name]) for name in base)
    if dtype == "float32":
        assert difference(ab, one, base) <= 1e-5
    assert difference(ab, base, base) > 0.1  # a control: the edit itself is large


def test_edited_weights_are_base_plus_the_dense_least_squares_shift(tmp_path: Path) -> None:
    """An independent solve: rows captured at the base in one batch, a stacked system, torch.linalg.lstsq."""
    world = make_world(tmp_path, "llama")
    base = weights(world)
    world.apply(*A)
    record = world.apply(*B).proposal.editor
    with world.ledger() as (ledger, model):
        editor, layers = load_editor(world.workspace.editors / record.id, model, record)
        language_model = load_base(ledger, model, layers)
    texts = [language_model.tokenizing(fact.prompt, fact.target) for fact in [*A, *B]]
    [(_, rows)] = language_model.capture(texts, batch_tokens=100_000)
    for i, layer in enumerate(layers):
        u, d = rows.keys[i], editor.value_diffs(i, rows.keys[i], rows.value_grads[i])
        preserved = editor.preserved[i]
        assert preserved is not None
        strength = editor.preserved_strength(i, len(u)) / preserved.count
        stacked = [u, strength**0.5 * preserved.keys, editor.ridge(i) ** 0.5 * torch.eye(layer.d_in)]
        left = torch.cat([x.double() for x in stacked])
        right = torch.cat([d.double(), d.new_zeros(len(left) - len(d), layer.d_out).double()])
        shift = torch.linalg.lstsq(left, right).solution.T  # Llama stores (d_out, d_in)
        change = weights(world)[layer.tensor].double() - base[layer.tensor].double()
        assert float((change - shift).norm() / shift.norm()) <= 1e-5


def test_rows_captured_after_an_apply_are_bit_for_bit_those_before_it(world: World) -> None:
    record = world.apply(*B).proposal.editor
    with world.ledger() as (ledger, model):
        editor, layers = load_editor(world.workspace.editors / record.id, model, record)
        captured = [capture_rows(load_base(ledger, model, layers), editor, A, batch_tokens=1024)]
    world.revert("HEAD")
    with world.ledger() as (ledger, model):
        captured.append(capture_rows(load_base(ledger, model, layers), editor, A, batch_tokens=1024))
    world.apply(*A, *B)
    with world.ledger() as (ledger, model):
        captured.append(capture_rows(load_base(ledger, model, layers), editor, A, batch_tokens=1024))
        without_overlay = load(world.checkpoint, float64=False)
        naive = capture_rows(without_overlay, editor, A, batch_tokens=1024)
    digests = [[rows.data.digest for rows in found] for found in [*captured, naive]]
    assert digests[0] == digests[1] == digests[2]
    assert digests[3][1:] != digests[2][1:]  # a control: without the overlay the second layer's rows are others
