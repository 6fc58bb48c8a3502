"""Prompts as a user's turn of a chat template, and the end of an answer as a label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_models import POSITIONS, TINY_TRAINING, make_fact, make_facts, save_tiny_model, tiny_tokenizer, world_of

from malmen_cli.errors import UsageError
from malmen_cli.language_models.tokenizing import CausalTokenizing, ClassTokenizing
from malmen_cli.ledger import store
from malmen_cli.operations.editors import settings_of

PROMPT, TARGET = "The capital of Bakeli is", "Ouagadougou"

# In the manner of Llama 3 (turns on lines of their own), Mistral (a space before the answer), and Qwen 3 (which lets
# the model think unless it is told not to).
LINES = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]\n{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
SPACE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
THINKING = (
    "{% for m in messages %}[{{ m.role }}]\n{% if m.role == 'assistant' %}(thought)\n\n{% endif %}{{ m.content }}</s>"
    "{% endfor %}{% if add_generation_prompt %}[assistant]\n"
    "{% if enable_thinking is defined and enable_thinking is false %}(thought)\n\n{% endif %}{% endif %}"
)
TEMPLATES = {"lines": LINES, "space": SPACE, "thinking": THINKING}


def tokenizer_with(template: str | None) -> Any:
    tokenizer = tiny_tokenizer.__wrapped__(adds_bos=True)  # one of our own: the shared one must not change
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompt_and_target_are_the_turns_that_the_template_writes(name: str) -> None:
    tokenizer = tokenizer_with(TEMPLATES[name])
    tokenizing = CausalTokenizing(tokenizer, POSITIONS, chat=True)
    tokens = tokenizing(PROMPT, TARGET)
    turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": TARGET}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id
    assert [*tokens.input_ids, tokens.labels[-1]] == ids[:-1]
    assert tokenizing.text_of(tokens.labels) == TARGET
    asked = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert tokenizing.prompt_ids(PROMPT) == tokenizer(asked, add_special_tokens=False)["input_ids"]
    with_end = CausalTokenizing(tokenizer, POSITIONS, chat=True, end_of_text=True)(PROMPT, TARGET)
    assert [*with_end.input_ids, with_end.labels[-1]] == ids


def test_a_turn_ends_with_the_token_that_the_template_writes() -> None:
    """Gemma's and Phi-3's turns do not end with the end of text."""
    tokenizer = tokenizer_with(LINES.replace("</s>", "<pad>\n"))
    ended = CausalTokenizing(tokenizer, POSITIONS, chat=True, end_of_text=True)(PROMPT, TARGET)
    assert ended.labels[-1] == tokenizer.pad_token_id != tokenizer.eos_token_id


def test_the_end_of_text_is_one_more_label() -> None:
    tokenizer = tokenizer_with(None)
    plain = CausalTokenizing(tokenizer, POSITIONS)(PROMPT, TARGET)
    ended = CausalTokenizing(tokenizer, POSITIONS, end_of_text=True)(PROMPT, TARGET)
    assert ended.labels == (*plain.labels, tokenizer.eos_token_id)
    assert ended.input_ids == (*plain.input_ids, plain.labels[-1])


class TestRefusals:
    def test_of_a_tokenizer_without_template_or_end(self) -> None:
        with pytest.raises(UsageError, match="no chat template"):
            CausalTokenizing(tokenizer_with(None), POSITIONS, chat=True)
        endless = tokenizer_with(None)
        endless.eos_token = None
        with pytest.raises(UsageError, match="no end-of-text token"):
            CausalTokenizing(endless, POSITIONS, end_of_text=True)

    def test_of_a_template_that_fails(self) -> None:
        broken = CausalTokenizing(tokenizer_with("{{ raise_exception('no such role') }}"), POSITIONS, chat=True)
        with pytest.raises(UsageError, match="chat template fails: no such role"):
            broken(PROMPT, TARGET)

    @pytest.mark.parametrize("settings", [{"chat": True}, {"end_of_text": True}])
    def test_of_classifiers(self, settings: dict[str, bool]) -> None:
        with pytest.raises(UsageError, match="classification"):
            ClassTokenizing(tokenizer_with(LINES), POSITIONS, names=["LABEL_0"], **settings)


def test_an_editor_keeps_how_its_model_is_run(tmp_path: Path) -> None:
    """Rows of an apply are captured as the editor's own were: other settings give other rows, and other weights."""
    folder = save_tiny_model(tmp_path / "model")
    tokenizer_with(SPACE).save_pretrained(folder)
    chat = {"chat_template": True, "end_of_text": True, "dtype": "bfloat16"}
    world = world_of(folder, training=TINY_TRAINING.model_copy(update=chat))
    applied = world.apply(*make_facts(3))
    assert applied.entry is not None
    with world.ledger() as (ledger, model), ledger.read() as db:
        [editor] = store.editors(db, model.id)
        settings = settings_of(editor)
        assert {name: getattr(settings, name) for name in chat} == chat
        rows = store.rows_of(db, editor.id, [make_fact(0).edit_digest])
        tokenizing = CausalTokenizing(tokenizer_with(SPACE), POSITIONS, chat=True, end_of_text=True)
        labels = tokenizing(make_fact(0).prompt, make_fact(0).target).labels
        assert {found[make_fact(0).edit_digest].count for found in rows.values()} == {len(labels)}
