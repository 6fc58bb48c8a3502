"""Which tokens of a text are supervised, and how texts are laid out in padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import CITIES, POSITIONS, make_facts, tiny_tokenizer
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, ByT5Tokenizer, PreTrainedTokenizerFast

from malmen_cli.errors import UnsupportedModel, UsageError
from malmen_cli.language_models import texts
from malmen_cli.language_models.loading import load_tokenizer
from malmen_cli.language_models.texts import Tokens
from malmen_cli.language_models.tokenizing import CausalTokenizing, Seq2SeqTokenizing

PROMPT = "The capital of Bakeli is"


def tokenizing(*, adds_bos: bool = False, limit: int | None = POSITIONS) -> CausalTokenizing:
    return CausalTokenizing(tiny_tokenizer(adds_bos=adds_bos), limit)


def target_text(tokens: Tokens) -> str:
    text: str = tiny_tokenizer().decode(tokens.labels, clean_up_tokenization_spaces=False)
    return text


class TestSupervisedTokens:
    @pytest.mark.parametrize("adds_bos", [False, True])
    @pytest.mark.parametrize("target", CITIES)
    def test_are_those_of_the_target_with_its_leading_space(self, target: str, adds_bos: bool) -> None:
        tokens = tokenizing(adds_bos=adds_bos)(PROMPT, target)
        assert target_text(tokens) == f" {target}"
        assert tokens.supervised == len(tiny_tokenizer()(f" {target}")["input_ids"])

    def test_are_one_for_a_common_word_and_several_for_a_rare_one(self) -> None:
        assert tokenizing()(PROMPT, "Paris").supervised == 1
        assert tokenizing()(PROMPT, "Ouagadougou").supervised > 1

    @pytest.mark.parametrize(("prompt", "target"), [(f"{PROMPT} ", "Paris"), (PROMPT, " Paris")])
    def test_do_not_depend_on_which_side_holds_the_space(self, prompt: str, target: str) -> None:
        assert tokenizing()(prompt, target) == tokenizing()(PROMPT, "Paris")

    def test_follow_the_beginning_token_that_a_tokenizer_adds(self) -> None:
        plain, with_bos = tokenizing()(PROMPT, "Paris"), tokenizing(adds_bos=True)(PROMPT, "Paris")
        assert with_bos.input_ids == (tiny_tokenizer().bos_token_id, *plain.input_ids)
        assert with_bos.labels == plain.labels

    def test_leave_out_the_end_token_that_a_tokenizer_adds(self) -> None:
        tokenizer = tiny_tokenizer.__wrapped__()  # one of our own: the shared one must not change
        eos = tokenizer.eos_token_id
        tokenizer.backend_tokenizer.post_processor = processors.Sequence(
            [processors.ByteLevel(), processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", eos)])]
        )
        assert tokenizer("Paris")["input_ids"][-1] == eos
        assert CausalTokenizing(tokenizer, POSITIONS)(PROMPT, "Paris") == tokenizing()(PROMPT, "Paris")

    @settings(deadline=None, max_examples=60)
    @given(st.text(min_size=1, max_size=12), st.text(min_size=1, max_size=8).map(str.strip).filter(bool))
    def test_hold_all_of_any_target_and_the_ids_are_those_of_running_text(self, prompt: str, target: str) -> None:
        # With a beginning token there is something before the target whatever the prompt.
        tokens = tokenizing(adds_bos=True, limit=None)(prompt, target)
        joint = prompt + ("" if prompt[-1].isspace() else " ") + target
        assert [*tokens.input_ids, tokens.labels[-1]] == tiny_tokenizer(adds_bos=True)(joint)["input_ids"]
        assert target_text(tokens).endswith(target)
        assert len(target_text(tokens)) <= len(target) + 1 or prompt[-1].isspace()


class TestWantedAnswer:
    def test_is_the_target(self) -> None:
        assert [tokenizing().wanted(tokenizing()(PROMPT, city)) for city in CITIES] == list(CITIES)

    def test_is_spelled_as_the_tokenizer_spells_it(self) -> None:
        """An NFC normaliser leaves no other spelling to be said, and another one no two blanks."""
        tokenizer = tiny_tokenizer.__wrapped__()  # one of our own: the shared one must not change
        blanks = normalizers.Replace(Regex(" {2,}"), " ")
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), blanks])
        nfc = CausalTokenizing(tokenizer, POSITIONS)
        assert nfc.wanted(nfc(PROMPT, "Sa\u0303o  Tome\u0301")) == "São Tomé"

    def test_has_the_spaces_that_free_answers_have(self) -> None:
        tokenizer = tiny_tokenizer.__wrapped__()
        tokenizer.clean_up_tokenization_spaces = True
        assert (
            CausalTokenizing(tokenizer, POSITIONS).text_of(tokenizer("Who are you ?")["input_ids"]) == "Who are you ?"
        )


class TestRefusals:
    def test_a_text_of_all_positions_fits_and_one_token_more_does_not(self) -> None:
        limit = len(tokenizing()(PROMPT, "Paris").input_ids)  # the last token is predicted, not read
        assert tokenizing(limit=limit)(PROMPT, "Paris").supervised == 1
        with pytest.raises(UsageError, match=f"{limit} tokens where the model has {limit - 1} positions"):
            tokenizing(limit=limit - 1)(PROMPT, "Paris")
        assert tokenizing(limit=limit - 1).fits(PROMPT, "Paris") is None

    @pytest.mark.parametrize(("prompt", "target"), [("", "Paris"), (PROMPT, ""), (PROMPT, " "), ("", "")])
    def test_nothing_to_supervise_or_nothing_to_predict_it_from(self, prompt: str, target: str) -> None:
        with pytest.raises(UsageError, match="nothing to supervise"):
            tokenizing()(prompt, target)

    def test_a_target_of_a_special_token(self) -> None:
        with pytest.raises(UsageError, match="holds the special token </s>"):
            tokenizing()(PROMPT, "Paris</s>")
        assert tokenizing().fits(f"<s>{PROMPT}", "Paris") is not None

    def test_a_target_of_characters_that_the_tokenizer_does_not_know(self) -> None:
        words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "It": 2, "is": 3, "Paris": 4}, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        small = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>", pad_token="</s>")
        for kind in (CausalTokenizing(small, None), Seq2SeqTokenizing(small, None, decoder_start=1)):
            assert kind("It is", "Paris").labels == (4,)
            assert kind("It 日", "Paris").labels == (4,)
            with pytest.raises(UsageError, match="'東京' has characters that the tokenizer does not know"):
                kind("It is", "東京")

    @pytest.mark.parametrize("family", ["gpt2", "t5", "bert"])
    def test_a_folder_without_a_tokenizer(self, family: str, tmp_path: Path) -> None:
        """transformers makes one, of some families with a token for what is unknown and no other."""
        AutoConfig.for_model(family).save_pretrained(tmp_path)
        with pytest.raises(UnsupportedModel):
            load_tokenizer(tmp_path)

    def test_a_tokenizer_without_character_offsets(self) -> None:
        with pytest.raises(UsageError, match="no character offsets"):
            CausalTokenizing(ByT5Tokenizer(), None)


@pytest.mark.parametrize("batch_tokens", [1, 50, 200, 10_000])
class TestBatches:
    def test_hold_every_text_once_within_the_budget(self, batch_tokens: int) -> None:
        texts = [tokenizing()(fact.prompt, fact.target) for fact in make_facts(11)]
        batches = list(tokenizing().batches(texts, batch_tokens))
        assert sorted(row for batch in batches for row in batch.rows) == list(range(11))
        assert all(batch.input_ids.numel() <= batch_tokens or len(batch.rows) == 1 for batch in batches)
        assert {1: 11, 10_000: 1}.get(batch_tokens, len(batches)) == len(batches)

    def test_mark_the_positions_before_the_supervised_tokens(self, batch_tokens: int) -> None:
        texts = [tokenizing()(fact.prompt, fact.target) for fact in make_facts(11)]
        for batch in tokenizing().batches(texts, batch_tokens):
            for place, row in enumerate(batch.rows):
                text, of_text = texts[row], batch.text == place
                inputs = int(batch.attention_mask[place].sum())
                assert batch.input_ids[place, :inputs].tolist() == list(text.input_ids)
                assert batch.labels[of_text].tolist() == list(text.labels)
                first = place * batch.input_ids.shape[1] + len(text.input_ids) - text.supervised
                assert batch.positions[of_text].tolist() == list(range(first, first + text.supervised))
                assert batch.count[of_text].tolist() == [int(of_text.sum())] * int(of_text.sum())


def padded(lengths: Sequence[int]) -> int:
    return len(lengths) * max(lengths) + texts.PER_BATCH


def least_of_all(lengths: tuple[int, ...], budget: int) -> int:
    """What the cheapest of all ways takes to cut sorted lengths into batches."""
    if not lengths:
        return 0
    sizes = [n for n in range(1, len(lengths) + 1) if n == 1 or n * lengths[n - 1] <= budget]
    return min(padded(lengths[:n]) + least_of_all(lengths[n:], budget) for n in sizes)


@given(lengths=st.lists(st.integers(1, 12) | st.integers(80, 90), min_size=1, max_size=10), budget=st.integers(1, 300))
def test_batches_have_no_padding_that_others_would_spare(lengths: list[int], budget: int) -> None:
    some = [Tokens((1,) * length, (2,)) for length in lengths]
    batches = list(texts.batches(some, budget, padding=0))
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(lengths)))
    assert all(batch.input_ids.numel() <= budget or len(batch.rows) == 1 for batch in batches)
    assert sum(padded(batch.lengths) for batch in batches) == least_of_all(tuple(sorted(lengths)), budget)


@given(
    widths=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 9)), min_size=1, max_size=30),
    budget=st.integers(1, 300),
)
def test_batches_count_what_an_encoder_and_a_decoder_read(widths: list[tuple[int, int]], budget: int) -> None:
    some = [Tokens((1,) * wide, (2,), (3,) * decoded) for wide, decoded in widths]
    batches = list(texts.batches(some, budget, padding=0))
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(widths)))
    for batch in batches:
        assert batch.decoder_input_ids is not None
        assert batch.input_ids.numel() + batch.decoder_input_ids.numel() <= budget or len(batch.rows) == 1
