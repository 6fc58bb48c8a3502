"""Exact match and contains: whether what a model says by itself is the target and nothing more, or holds it."""

from __future__ import annotations

import re

from malmen_cli.language_models.generation import Generated

ROOM = 16
"""Tokens that an answer may have beyond its target's, where no cap is given: a right answer ends within them."""


def normalised(text: str) -> str:
    """`text` without outer white space and without one closing full stop; upper and lower case stay apart."""
    return text.strip().removesuffix(".").strip()


def exact_match(generated: Generated, target: str) -> bool:
    """Whether the model said the target (its first line), both normalised, and then stopped by itself.

    An answer that ran into the cap is none, whatever it begins with: nobody knows what would have followed.
    """
    return generated.stopped and normalised(generated.text) == normalised(_first_line(target))


def contains(text: str, target: str) -> bool:
    """Whether the target (its first line) occurs in an answer, whole words, in its own case; white space is all one.

    An answer that holds the target may say something else all the same ("not Rome, but Oslo"), and one that was cut
    off counts too: this is the lenient measure of the field, to be read beside exact match.
    """
    words = normalised(" ".join(_first_line(target).split()))
    if not words:
        return False
    before, after = (r"(?<!\w)" if _bounded(words[0]) else ""), (r"(?!\w)" if _bounded(words[-1]) else "")
    return re.search(f"{before}{re.escape(words)}{after}", " ".join(text.split())) is not None


def _first_line(target: str) -> str:
    """What of a target a free answer can hold: its first line, since the answer ends at a line end."""
    return target.strip().partition("\n")[0]


def _bounded(character: str) -> bool:
    """Whether a word that it begins or ends is told from its neighbours: there are scripts that write no spaces."""
    return character.isalnum() and (character.isascii() or character.lower() != character.upper())
