"""A loaded model: logits at supervised positions only, answers, orientation of weights, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import DTYPES, Family, load, make_facts
from torch.nn.functional import cross_entropy

from malmen_cli.errors import UnsupportedModel, WrongBase
from malmen_cli.language_models.edited_layers import family_layers
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.language_models.texts import Tokens

FAMILIES: list[Family] = ["gpt2", "llama"]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tiny_folder: Callable[..., Path]) -> LanguageModel:
    return load(tiny_folder(request.param))


def some_texts(model: LanguageModel) -> list[Tokens]:
    return [model.tokenizing(fact.prompt, fact.target) for fact in make_facts(8)]


class TestLogits:
    @pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
    def test_are_those_of_the_full_forward_of_each_text_alone(self, model: LanguageModel, batch_tokens: int) -> None:
        texts = some_texts(model)
        for batch in model.batches(texts, batch_tokens):
            logits, hidden = model.head.forward(batch)
            alone = [model.model(input_ids=torch.tensor([texts[row].input_ids])).logits[0] for row in batch.rows]
            expected = torch.cat([a[-texts[row].supervised :] for a, row in zip(alone, batch.rows, strict=True)])
            assert torch.allclose(logits, expected, rtol=1e-10, atol=1e-10)
            assert torch.allclose(model.head.logits_of(hidden), logits, rtol=1e-12, atol=1e-12)
            assert torch.equal(model.logits(batch), logits)

    def test_predictions_come_in_the_order_of_the_texts(self, model: LanguageModel) -> None:
        texts = some_texts(model)
        one_by_one = [model.predictions([text])[0] for text in texts]
        assert [len(found) for found in one_by_one] == [text.supervised for text in texts]
        assert len({text.length for text in texts}) > 1  # so that batches reorder them
        assert model.predictions(texts, batch_tokens=50) == one_by_one

    def test_an_answer_is_the_greedy_continuation(self, model: LanguageModel) -> None:
        tokenizer = model.tokenizing.tokenizer
        prompt = "The capital of Bakeli is"
        ids = tokenizer(prompt)["input_ids"]
        read = len(ids)
        for _ in range(6):
            ids.append(int(model.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
        said = tokenizer.decode(ids[read:], skip_special_tokens=True).strip()
        assert model.generate([prompt], 6)[0].text == said.split("\n")[0]


class TestWeights:
    def test_are_views_with_rows_acting_on_the_right(self, model: LanguageModel) -> None:
        for layer, shape in zip(model.layers, model.shapes, strict=True):
            assert layer.weight.shape == (shape.d_in, shape.d_out) == (32, 16)
            stored = model.parameter(layer.name)
            assert layer.weight.data_ptr() == stored.data_ptr()
            assert (stored.shape == (16, 32)) == layer.transposed == (model.model_type == "llama")
            keys, bias = torch.randn(5, 32, dtype=torch.float64), getattr(layer.module, "bias", None)
            assert torch.allclose(layer.module(keys), keys @ layer.weight + (0 if bias is None else bias), atol=1e-12)

    def test_are_put_in_rounded_to_the_dtype_and_taken_out_as_copies(self, tiny_folder: Callable[..., Path]) -> None:
        model = load(tiny_folder("llama", dtype="bfloat16"), float64=False)
        base = model.weights()
        wanted = [weight.float() + 0.123 for weight in base]
        model.set_weights(wanted)
        assert all(torch.equal(w, x.bfloat16()) for w, x in zip(model.weights(), wanted, strict=True))
        model.set_weights(base)
        assert all(map(torch.equal, model.weights(), base))

    def test_get_gradients_in_the_same_orientation_and_nothing_else_does(self, model: LanguageModel) -> None:
        [batch] = model.batches(some_texts(model), 10_000)
        with model.weight_gradients():
            weights = [layer.module.weight for layer in model.layers]
            plain = torch.autograd.grad(cross_entropy(model.logits(batch), batch.labels), weights)
            cross_entropy(model.logits(batch), batch.labels).backward()
            grads = [layer.weight_grad.clone() for layer in model.layers]
            with_gradient = {name for name, p in model.model.named_parameters() if p.grad is not None}
        assert with_gradient == {f"{layer.name}.weight" for layer in model.layers}
        assert all(p.grad is None and not p.requires_grad for p in model.model.parameters())
        for layer, grad, expected in zip(model.layers, grads, plain, strict=True):
            assert torch.equal(grad, expected.T if layer.transposed else expected)
            assert float(grad.norm()) > 0

    def test_of_another_shape_are_not_overlaid(self, model: LanguageModel) -> None:
        with pytest.raises(WrongBase, match="the base tensor is"):
            model.overlay({model.layers[0].name: torch.zeros(3, 3)})


class TestLoading:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_keeps_the_dtype_of_the_files(self, tiny_folder: Callable[..., Path], family: Family, dtype: str) -> None:
        model = load(tiny_folder(family, dtype=dtype), float64=False)
        assert model.dtype == DTYPES[dtype]
        assert all(
            # Of float16 the gradients are widened, since they were scaled to be within its range.
            grad.dtype == (torch.float32 if dtype == "float16" else DTYPES[dtype])
            for _, rows in model.capture(some_texts(model))
            for grad in rows.value_grads
        )

    @pytest.mark.parametrize("family", FAMILIES)
    def test_gives_the_same_model_from_shards(self, tiny_folder: Callable[..., Path], family: Family) -> None:
        shards = tiny_folder(family, sharded=True)
        assert len(list(shards.glob("*.safetensors"))) >= 2
        one, several = load(tiny_folder(family)).model.state_dict(), load(shards).model.state_dict()
        assert one.keys() == several.keys()
        assert all(torch.equal(one[name], several[name]) for name in one)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_edits_the_last_two_thirds_of_the_layers_or_those_named(
        self, tiny_folder: Callable[..., Path], family: Family
    ) -> None:
        path = {"gpt2": "transformer.h.{}.mlp.c_proj", "llama": "model.layers.{}.mlp.down_proj"}[family]
        folder = tiny_folder(family)
        assert [layer.name for layer in load(folder).layers] == [path.format(i) for i in (1, 2)]
        assert [layer.name for layer in load(folder, layers=[path.format("[02]")]).layers] == [
            path.format(i) for i in (0, 2)
        ]


class TestRefusals:
    @pytest.mark.parametrize(
        ("layers", "reason"),
        [
            (["transformer.wte"], "layer of kind Embedding"),
            (["transformer.h.1"], "layer of kind GPT2Block"),
            (["transformer.h.0.mlp.c_proj", "nothing.*"], r"no module of the model fits 'nothing.\*'"),
        ],
    )
    def test_of_layers_that_cannot_be_edited(
        self, tiny_folder: Callable[..., Path], layers: list[str], reason: str
    ) -> None:
        with pytest.raises(UnsupportedModel, match=reason) as refusal:
            load(tiny_folder(), layers=layers)
        assert "--layers" in str(refusal.value.remedy) or "nn.Linear" in str(refusal.value.remedy)

    def test_of_a_model_without_the_layers_of_its_family_names_the_flag(self) -> None:
        with pytest.raises(UnsupportedModel, match="GPT-NeoX") as refusal:
            family_layers("gpt_neox", ["gpt_neox.layers.0.mlp.c_proj"])
        assert "--layers" in str(refusal.value.remedy)

    def test_of_a_model_that_changes_its_logits_though_those_of_padding_are_all_0(
        self, tiny_folder: Callable[..., Path]
    ) -> None:
        model = load(tiny_folder("llama"))
        assert not model.model.get_input_embeddings().weight[model.tokenizing.padding].any()
        assert model.tokenizing.padding not in model.trial_tokens(9) and len(set(model.trial_tokens(9))) == 9
        model.require_usable()
        model.model.register_forward_hook(lambda _, __, output: setattr(output, "logits", 2 * output.logits))
        with pytest.raises(UnsupportedModel, match="change their logits in a way that malmen does not know"):
            model.require_usable()

    def test_of_a_model_that_caps_its_logits_where_its_own_are_small(self, tiny_folder: Callable[..., Path]) -> None:
        model = load(tiny_folder("llama"))
        cap = model.model.register_forward_hook(
            lambda _, __, output: setattr(output, "logits", 30 * torch.tanh(output.logits / 30))
        )
        with pytest.raises(UnsupportedModel, match="change their logits in a way that malmen does not know"):
            model.require_usable()
        for name in ("final_logit_softcapping", "logits_soft_cap"):  # Gemma's, RecurrentGemma's
            setattr(model.model.config, name, 30.0)
            model.require_usable()
            setattr(model.model.config, name, None)
        cap.remove()
        model.require_usable()

    def test_of_a_model_whose_logits_are_no_numbers(self, tiny_folder: Callable[..., Path]) -> None:
        model = load(tiny_folder("llama"))
        torch.nn.init.constant_(model.model.get_submodule("model.layers.2.mlp.up_proj").weight, torch.inf)
        with pytest.raises(UnsupportedModel, match="logits that are no numbers"):
            model.require_usable()
        assert model.lower is None

    def test_of_a_layer_that_a_pass_runs_twice(self, tiny_folder: Callable[..., Path]) -> None:
        """As in models that go through their blocks several times."""
        model = load(tiny_folder("llama"))
        block = model.model.model.layers[2]
        run = block.forward
        block.forward = lambda hidden, *args, **named: run(run(hidden, *args, **named), *args, **named)
        with pytest.raises(UnsupportedModel, match=r"layers\.2\.mlp\.down_proj is not run once on every token"):
            model.require_usable()

    @pytest.mark.parametrize(
        ("changes", "lost"),
        [
            ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, ""),
            ({"model_type": "no-such-architecture"}, ""),
            ({"model_type": "vit"}, ""),
            ({}, "model.safetensors"),
            ({}, "config.json"),
        ],
    )
    def test_of_folders_that_hold_no_causal_model(
        self, tiny_folder: Callable[..., Path], tmp_path: Path, changes: dict[str, object], lost: str
    ) -> None:
        folder = shutil.copytree(tiny_folder(), tmp_path / "model")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))
        if lost:
            (folder / lost).unlink()
        with pytest.raises(UnsupportedModel):
            load(folder)
