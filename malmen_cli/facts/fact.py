"""One fact: what the model is asked, what it shall answer, and what it must and must not change besides."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from malmen_cli.facts.fields import Fields


@dataclass(frozen=True, slots=True)
class Unrelated:
    """A prompt whose answer must not change."""

    prompt: str
    target: str


@dataclass(frozen=True)
class Fact:
    """One fact. The constructor trusts its caller; `from_json` checks."""

    prompt: str
    target: str
    subject: str | None = None
    rephrases: tuple[str, ...] = ()  # prompts that must get the same target
    unrelated: tuple[Unrelated, ...] = ()
    tags: tuple[str, ...] = ()
    source: str | None = None  # where the fact comes from, such as "case_id:21431"

    @classmethod
    def from_json(cls, obj: Mapping[str, object]) -> Fact:
        """The fact that a JSON object in malmen's own format holds: the inverse of `canonical_json`.

        Raises:
            BadFacts: with every unknown field and every unusable text.
        """
        fields = Fields(obj)
        fields.only("prompt", "target", "subject", "rephrases", "unrelated", "tags", "source")
        unrelated = []
        for item in fields.objects("unrelated"):
            item.only("prompt", "target")
            unrelated.append(Unrelated(item.text("prompt", strip=str.rstrip), item.text("target")))
        fact = cls(
            prompt=fields.text("prompt", strip=str.rstrip),
            target=fields.text("target"),
            subject=fields.optional("subject"),
            rephrases=fields.texts("rephrases", strip=str.rstrip),
            unrelated=tuple(dict.fromkeys(unrelated)),
            tags=fields.texts("tags"),
            source=fields.optional("source"),
        )
        fields.check()
        return fact

    def canonical_json(self) -> str:
        """The one spelling of this fact: sorted keys, no spaces, no needless escapes, empty fields left out."""
        return _canonical(
            {
                "prompt": self.prompt,
                "target": self.target,
                "subject": self.subject,
                "rephrases": self.rephrases,
                "unrelated": [{"prompt": other.prompt, "target": other.target} for other in self.unrelated],
                "tags": self.tags,
                "source": self.source,
            }
        )

    @cached_property
    def digest(self) -> str:
        """Identity of the whole record."""
        return _digest(self.canonical_json())

    @cached_property
    def edit_digest(self) -> str:
        """Identity of what the rows (u, d) depend on: prompt, target and subject."""
        return _digest(_canonical({"prompt": self.prompt, "target": self.target, "subject": self.subject}))


def _canonical(fields: Mapping[str, object]) -> str:
    filled = {key: value for key, value in fields.items() if value}
    return json.dumps(filled, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _digest(text: str) -> str:
    return "sha256:" + sha256(text.encode()).hexdigest()
