"""Where a prompt names its fact's subject."""

from __future__ import annotations

import re


def subject_span(prompt: str, subject: str) -> tuple[int, int] | None:
    """First character and end of the subject's last mention in the prompt; None where there is none.

    As a whole word first, then in any case, then inside of words (languages that write no spaces).
    """
    name = re.escape(subject.strip())
    if not name:
        return None
    for pattern, flags in ((rf"(?<!\w){name}(?!\w)", 0), (rf"(?<!\w){name}(?!\w)", re.IGNORECASE), (name, 0)):
        mentions = list(re.finditer(pattern, prompt, flags))
        if mentions:
            return mentions[-1].span()
    return None
