"""Where a fact's subject ends in its prompt, in tokens: the place at which MEMIT reads and writes."""

from __future__ import annotations

from malmen_cli.facts.subjects import subject_span
from malmen_cli.language_models.tokenizing import Tokenizing


def last_subject_token(tokenizing: Tokenizing, prompt: str, subject: str) -> int | None:
    """Index, into what the model reads of the prompt, of the last token that holds a part of the subject.

    The subject's last mention counts, as `subject_span` finds it. None where the prompt does not name it.
    """
    text = tokenizing.turn(prompt) if tokenizing.chat else prompt
    # A chat template may name the subject in words of its own, before or after the user's.
    start = max(text.rfind(prompt), 0)
    found = subject_span(text[start : start + len(prompt)], subject)
    if found is None:
        return None
    first, stop = found[0] + start, found[1] + start
    encoded = tokenizing.encode(text)
    inside = [
        place
        for place, ((a, b), special) in enumerate(
            zip(encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True)
        )
        if a < stop and b > first and not special
    ]
    return inside[-1] if inside else None


def last_prompt_token(tokenizing: Tokenizing, prompt: str) -> int:
    """Index of the last token that the model reads of a prompt before it answers."""
    return len(tokenizing.prompt_ids(prompt)) - 1
