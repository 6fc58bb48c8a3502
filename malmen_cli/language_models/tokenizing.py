"""From prompt and target to token ids and labels: one class per task."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from malmen_cli.errors import BadFacts, UnsupportedModel, UsageError
from malmen_cli.facts import printable
from malmen_cli.facts.decoding import MAX_PROBLEMS
from malmen_cli.language_models.texts import Batch, Tokens, batches

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Tokenizing(ABC):
    """How a model's texts become tokens.

    Padding is always on the right, and masked, whatever side the tokenizer would pad.

    Args:
        tokenizer: a fast tokenizer (offsets are needed). limit: positions the model has, or None. vocabulary: tokens
            that the model has embeddings of, or None. chat: prompts are a user's turn of the tokenizer's chat template.
        end_of_text: whether the end of the answer is supervised too.

    Raises:
        UsageError: no character offsets, or no chat template where one is wanted.
    """

    labels_first = False  # whether labels are predicted at the first position

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        limit: int | None,
        vocabulary: int | None = None,
        *,
        chat: bool = False,
        end_of_text: bool = False,
    ) -> None:
        if not tokenizer.is_fast:
            raise UsageError(
                "the model's tokenizer gives no character offsets",
                remedy="A tokenizer.json beside the model is needed.",
            )
        if chat and not getattr(tokenizer, "chat_template", None):
            raise UsageError(
                "the model's tokenizer has no chat template",
                remedy="Leave out --chat-template, or use an instruct model.",
            )
        if end_of_text and tokenizer.eos_token_id is None:
            raise UsageError("the model's tokenizer has no end-of-text token", remedy="Leave out --end-of-text.")
        self.tokenizer: Any = tokenizer
        self.limit, self.vocabulary, self.chat, self.end_of_text = limit, vocabulary, chat, end_of_text
        self._special = frozenset(tokenizer.all_special_ids)
        self.padding: int = next((x for x in (tokenizer.pad_token_id, tokenizer.eos_token_id) if x is not None), 0)
        if vocabulary is not None and self.padding >= vocabulary:
            self.padding = 0  # it is masked wherever it stands

    @abstractmethod
    def __call__(self, prompt: str, target: str) -> Tokens:
        """Tokens of a prompt with its target.

        Raises:
            UsageError: longer than the model's positions, nothing to supervise, or a token that is not the model's.
        """

    def fits(self, prompt: str, target: str) -> Tokens | None:
        """The tokens, or None where the text cannot be supervised (too long for the model, say)."""
        try:
            return self(prompt, target)
        except UsageError:
            return None

    def all_of(self, pairs: Iterable[tuple[str, str]]) -> Iterator[Tokens]:
        """The tokens of edit prompts with their targets, one after another.

        Raises:
            BadFacts: at the end, with every text that cannot be supervised, and why.
        """
        problems: list[str] = []
        more, remedy = 0, None
        for prompt, target in pairs:
            try:
                tokens = self(prompt, target)
            except UsageError as error:
                remedy = remedy or error.remedy
                if len(problems) < MAX_PROBLEMS:
                    said = printable(prompt)
                    named = f"'{said.removesuffix('…')}" in error.message
                    problems.append(error.message if named else f"'{said}': {error.message}")
                else:
                    more += 1
                continue
            if not problems:
                yield tokens
        if problems:
            count = len(problems) + more
            message = f"{count:,} fact{'s do' if count > 1 else ' does'} not fit the model, nothing was written"
            raise BadFacts(problems, message, remedy=remedy, more=more)

    def why_not(self, prompt: str, target: str) -> UsageError | None:
        """The error of a text that cannot be supervised; None for any other."""
        try:
            self(prompt, target)
        except UsageError as error:
            return error
        return None

    def nothing_fits(self, prompt: str, target: str) -> UsageError:
        """The error where none of many texts can be supervised, with the reason of this one."""
        error = self.why_not(prompt, target)
        if error is None:
            return UsageError("no fact fits the model")
        return UsageError(f"no fact fits the model: {error.message}", remedy=error.remedy)

    def batches(self, texts: Sequence[Tokens], batch_tokens: int) -> Iterator[Batch]:
        """Padded batches of similar length, at most `batch_tokens` padded tokens each (or one text)."""
        return batches(texts, batch_tokens, padding=self.padding, first=self.labels_first)

    def prompt_ids(self, prompt: str) -> list[int]:
        """What the model reads of a prompt alone, before it answers."""
        encoded = self.encode(self.turn(prompt) if self.chat else prompt)
        return list(encoded["input_ids"])

    def said(self, prompt: str, answer: Sequence[int], most: int) -> Tokens | None:
        """A prompt with what a model has answered to it, token by token, of which the first `most` are labels.

        White space that the answer begins with is read, and no label. None where there is nothing else.
        """
        first = next((place for place, token in enumerate(answer) if self.text_of([token])), len(answer))
        labels = tuple(answer[first : first + most])
        return self._answered(prompt, (*answer[:first], *labels), labels) if labels else None

    def _answered(self, prompt: str, said: tuple[int, ...], labels: tuple[int, ...]) -> Tokens:
        return Tokens((*self.prompt_ids(prompt), *said[:-1]), labels)

    def wanted(self, tokens: Tokens) -> str:
        """The free answer that a target asks for, as the tokenizer writes it: it may have changed how it is spelled."""
        return self.text_of(tokens.labels)

    def text_of(self, labels: Sequence[int]) -> str:
        """Labels as people read them."""
        # Spaces as they are, as in free answers.
        text = self.tokenizer.decode(list(labels), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text).strip()

    def turn(self, prompt: str) -> str:
        """A prompt as the user's turn of the chat template, up to where the answer begins."""
        return str(self._render([{"role": "user", "content": prompt}], add_generation_prompt=True))

    def encode(self, text: str) -> Any:
        # A chat template writes the special tokens itself.
        return self.tokenizer(
            text,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            add_special_tokens=not self.chat,
            verbose=False,
        )

    def _render(self, turns: list[dict[str, str]], **settings: Any) -> str:
        try:
            # A model that can think aloud is asked not to: the answer is to follow the prompt.
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, enable_thinking=False, **settings)
        except Exception as error:  # a template is a program, and may come from a stranger
            raise UsageError(f"the model's chat template fails: {error}".splitlines()[0]) from None
        return str(text)

    def _checked(self, tokens: Tokens, text: str) -> Tokens:
        """The tokens, if the model has positions and embeddings for them."""
        read = max(len(tokens.input_ids), len(tokens.decoder_input_ids))
        if self.limit is not None and read > self.limit:
            raise UsageError(
                f"{read} tokens where the model has {self.limit} positions: '{printable(text)}'",
                remedy="Shorten the prompt or leave the fact out.",
            )
        labels = () if self.labels_first else tokens.labels
        self.require_known((*tokens.input_ids, *tokens.decoder_input_ids, *labels), text)
        return tokens

    def require_known(self, ids: Iterable[int], text: str) -> None:
        """Raise UsageError where the model has no embedding for a token of a text."""
        largest = max(ids, default=0)
        if self.vocabulary is not None and largest >= self.vocabulary:
            raise UsageError(
                f"token {largest} where the model knows {self.vocabulary:,}: '{printable(text)}'",
                remedy="The tokenizer belongs to another model, or was given tokens that the model was not.",
            )

    def _require_sayable(self, labels: Sequence[int], target: str) -> None:
        """Raise UsageError where part of a target is a token that is no text: no answer would show it."""
        special = self._special.intersection(labels)
        if not special:
            return
        spelled = [token for token in self.tokenizer.convert_ids_to_tokens(sorted(special)) if token in target]
        what = f"holds the special token {spelled[0]}" if spelled else "has characters that the tokenizer does not know"
        raise UsageError(
            f"the target '{printable(target)}' {what}",
            remedy="Leave the fact out, or write it otherwise; one that is in force: malmen revert ID --fact NUMBER.",
        )

    def _end(self, after: str = "") -> tuple[int, ...]:
        """The token that ends an answer: the first special one of what a chat template writes after it, or the end of
        text."""
        if not self.end_of_text:
            return ()
        own = (token for token in self.encode(after)["input_ids"] if token in self._special)
        return (next(own, self.tokenizer.eos_token_id) if after else self.tokenizer.eos_token_id,)


class CausalTokenizing(Tokenizing):
    """Prompt and target are tokenised together, so that leading spaces and merges come out as in running text."""

    def __call__(self, prompt: str, target: str) -> Tokens:
        start, joint, after = self._joint(prompt, target)
        encoded = self.encode(joint)
        ids, offsets, special = encoded["input_ids"], encoded["offset_mapping"], encoded["special_tokens_mask"]
        target_tokens = [
            i
            for i, ((_, stop), is_special) in enumerate(zip(offsets, special, strict=True))
            if stop > start and not is_special
        ]
        if not target.strip() or not target_tokens or target_tokens[0] == 0:
            raise _nothing_to_supervise(joint)
        self._require_sayable(ids[target_tokens[0] : target_tokens[-1] + 1], target)
        ids = (*ids[: target_tokens[-1] + 1], *self._end(after))
        return self._checked(Tokens(ids[:-1], ids[target_tokens[0] :]), joint)

    def prompt_ids(self, prompt: str) -> list[int]:
        encoded = self.encode(self.turn(prompt) if self.chat else prompt)
        ids: list[int] = list(encoded["input_ids"])
        # What ends a text must not stand between a prompt and what follows it; in a chat template it ends a turn.
        while not self.chat and len(ids) > 1 and encoded["special_tokens_mask"][len(ids) - 1]:
            ids.pop()
        return ids

    def _joint(self, prompt: str, target: str) -> tuple[int, str, str]:
        """Where the target begins, or the space before it; prompt and target as one text; what a template adds."""
        if not self.chat:
            return len(prompt), prompt + ("" if prompt[-1:].isspace() or target[:1].isspace() else " ") + target, ""
        before = self.turn(prompt)
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": target}]
        follows = self._render(turns, add_generation_prompt=False)
        # Whether a space comes between is for the template to say.
        space = " " if follows.startswith(f"{before} {target}") else ""
        joint = f"{before}{space}{target}"
        return len(before), joint, follows.removeprefix(joint) if follows.startswith(joint) else ""


class Seq2SeqTokenizing(Tokenizing):
    """The prompt is what the encoder reads; the target, with the end that the tokenizer gives it, is the decoder's.

    Args:
        decoder_start: the token that decoding starts from.
    """

    def __init__(self, *args: Any, decoder_start: int, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.decoder_start = decoder_start

    def __call__(self, prompt: str, target: str) -> Tokens:
        target = target.strip()
        encoded = self.tokenizer(text_target=target, return_special_tokens_mask=True, verbose=False)
        ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
        own = [i for i, is_special in enumerate(special) if not is_special]
        input_ids = self.prompt_ids(prompt)
        if not target or not own or not input_ids:
            raise _nothing_to_supervise(target)
        self._require_sayable(ids[own[0] : own[-1] + 1], target)
        labels = (*ids[own[0] : own[-1] + 1], *self._end())
        decoded = (self.decoder_start, *ids[: own[0]], *labels[:-1])
        return self._checked(Tokens(tuple(input_ids), labels, decoded), prompt)

    def _answered(self, prompt: str, said: tuple[int, ...], labels: tuple[int, ...]) -> Tokens:
        return Tokens(tuple(self.prompt_ids(prompt)), labels, (*self.decoder_prefix(), *said[:-1]))

    def decoder_prefix(self) -> list[int]:
        """What the decoder reads before the first token of any answer: BART's has a beginning-of-text token there."""
        encoded = self.tokenizer(text_target="a", return_special_tokens_mask=True, verbose=False)
        special = encoded["special_tokens_mask"]
        return [self.decoder_start, *encoded["input_ids"][: special.index(0)]]


_TRUE, _FALSE = ("supports", "supported", "true", "yes", "1"), ("refutes", "refuted", "false", "no", "0")


class ClassTokenizing(Tokenizing):
    """The prompt is read alone; the target names a class, in any case.

    A head with one logit has two classes, the logit being that of the second: FEVER's REFUTES and SUPPORTS, unless
    the model's configuration names the second one otherwise. Words for true and false stand for the two of them, but
    where the second one is itself called by a word for false.

    Args:
        names: of the classes, as the configuration gives them, one per logit.
    """

    labels_first = True

    def __init__(self, *args: Any, names: Sequence[str], **settings: Any) -> None:
        super().__init__(*args, **settings)
        if self.chat or self.end_of_text:
            raise UsageError("a classification model takes no chat template and says no end of text")
        self.names = [name.strip() for name in names]
        words: dict[str, int] = {}
        if len(names) <= 1:
            own = self.names[0] if names and not re.fullmatch(r"LABEL_\d+", self.names[0]) else "SUPPORTS"
            self.names = ["REFUTES" if own == "SUPPORTS" else f"not {own}", own]
            if own.casefold() not in _FALSE:
                words = dict.fromkeys(_FALSE, 0) | dict.fromkeys(_TRUE, 1)
        classes = {name.casefold(): place for place, name in enumerate(self.names)}
        if len(classes) < len(self.names):
            raise UnsupportedModel(
                "two classes of the model have one name, but for case and spaces",
                remedy="Mend id2label in config.json.",
            )
        self._classes = words | classes

    def __call__(self, prompt: str, target: str) -> Tokens:
        label = self._classes.get(target.strip().casefold())
        if label is None:
            raise UsageError(
                f"the target '{printable(target)}' names none of the model's classes",
                remedy=f"Targets of this model are {', '.join(self.names[:10])}.",
            )
        return self._checked(Tokens(tuple(self.prompt_ids(prompt)), (label,)), prompt)

    def _answered(self, prompt: str, said: tuple[int, ...], labels: tuple[int, ...]) -> Tokens:
        return Tokens(tuple(self.prompt_ids(prompt)), labels)

    def text_of(self, labels: Sequence[int]) -> str:
        return ", ".join(self.names[label] for label in labels)


def _nothing_to_supervise(text: str) -> UsageError:
    return UsageError(
        f"the tokenizer leaves nothing to supervise in '{printable(text)}'",
        remedy="Leave the fact out, or write its target in characters that the tokenizer knows.",
    )
