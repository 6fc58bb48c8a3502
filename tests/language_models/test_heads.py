"""One logit as two classes; classes by name."""

from __future__ import annotations

import pytest
import torch
from family_models import save_family_model
from tiny_models import POSITIONS, load, tiny_tokenizer
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, kl_div, log_softmax, logsigmoid

from malmen_cli.errors import UnsupportedModel, UsageError
from malmen_cli.language_models.tokenizing import ClassTokenizing


@pytest.fixture(scope="module")
def one_logit(tmp_path_factory: pytest.TempPathFactory):
    return load(save_family_model(tmp_path_factory.mktemp("bert") / "model", "bert")).head


class TestOneLogit:
    def test_cross_entropy_is_the_binary_one_with_its_gradient(self, one_logit) -> None:
        z = torch.linspace(-9, 9, 19, dtype=torch.float64)[:, None].requires_grad_()
        for label in (0, 1):
            labels = torch.full((19,), label)
            ours = cross_entropy(one_logit.logits_of(z), labels)
            binary = binary_cross_entropy_with_logits(z[:, 0], labels.double())
            assert torch.allclose(ours, binary, rtol=1e-12)
            assert torch.allclose(*(torch.autograd.grad(loss, z)[0] for loss in (ours, binary)), rtol=1e-10)

    def test_divergence_is_that_of_bernoulli_distributions(self, one_logit) -> None:
        p, q = torch.randn(2, 8, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        ours = kl_div(*(log_softmax(one_logit.logits_of(z), 1) for z in (q, p)), reduction="none", log_target=True)
        true, false = (
            p.sigmoid() * (logsigmoid(p) - logsigmoid(q)),
            (-p).sigmoid() * (logsigmoid(-p) - logsigmoid(-q)),
        )
        assert torch.allclose(ours.sum(1), (true + false)[:, 0], rtol=1e-10)

    def test_the_likelier_class_is_the_sign(self, one_logit) -> None:
        assert one_logit.logits_of(torch.tensor([[-0.1], [0.1]])).argmax(1).tolist() == [0, 1]


def classes(*names: str) -> ClassTokenizing:
    return ClassTokenizing(tiny_tokenizer(), POSITIONS, names=names)


class TestClassNames:
    @pytest.mark.parametrize(("target", "label"), [("SUPPORTS", 1), ("refutes", 0), ("True", 1), ("no", 0), (" 1", 1)])
    def test_of_one_logit_are_fevers(self, target: str, label: int) -> None:
        assert classes("LABEL_0")("A claim.", target).labels == (label,)
        assert classes("LABEL_0").text_of([label]) == ("REFUTES", "SUPPORTS")[label]

    def test_of_one_logit_that_has_a_name(self) -> None:
        spam = classes("spam")
        assert [spam("A letter.", target).labels for target in ("Spam", "not spam", "yes")] == [(1,), (0,), (1,)]

    @pytest.mark.parametrize("own", ["no", "Refutes", "0"])
    def test_of_one_logit_that_has_a_name_for_false(self, own: str) -> None:
        one = classes(own)
        assert [one("A claim.", target).labels for target in (own, own.upper(), f"not {own}")] == [(1,), (1,), (0,)]
        assert one.text_of([1]) == own
        with pytest.raises(UsageError, match="names none of the model's classes"):
            one("A claim.", "yes")

    def test_are_told_without_case_and_outer_spaces(self) -> None:
        two = classes(" Pos", "neg ")
        assert [two("A claim.", target).labels for target in ("pos", " NEG")] == [(0,), (1,)]
        assert two.text_of([0, 1]) == "Pos, neg"
        for other in ("POS", "Pos "):
            with pytest.raises(UnsupportedModel, match="one name"):
                classes("Pos", other)

    def test_of_several_logits_are_the_models_own(self) -> None:
        three = classes("entailment", "neutral", "contradiction")
        assert three("A claim.", "NEUTRAL").labels == (1,)
        with pytest.raises(UsageError, match="names none of the model's classes") as refusal:
            three("A claim.", "SUPPORTS")
        assert "entailment, neutral, contradiction" in str(refusal.value.remedy)

    def test_of_two_logits_alike_are_refused(self) -> None:
        with pytest.raises(UnsupportedModel, match="one name"):
            classes("same", "same")

    def test_the_prompt_alone_is_read(self) -> None:
        tokens = classes("LABEL_0")("A claim.", "SUPPORTS")
        assert list(tokens.input_ids) == tiny_tokenizer()("A claim.")["input_ids"]
