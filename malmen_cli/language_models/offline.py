"""Nobody asks the network on our behalf, except for as long as somebody has told us to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from malmen_cli.errors import UsageError

_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")

# What the user set, looked at before `stay_offline` sets the same.
_FORBIDDEN_BY = [name for name in _SWITCHES if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]


def stay_offline() -> None:
    """Before the first import of huggingface_hub or transformers: no request of theirs leaves this machine.

    Whatever the user's environment says: malmen fetches when it is told to, and never else.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"


@contextmanager
def online() -> Iterator[None]:
    """The hub may be asked within the `with` block. No connection is left open behind it.

    Raises:
        UsageError: the user's environment forbids it.
    """
    if _FORBIDDEN_BY:
        raise UsageError(
            f"{_FORBIDDEN_BY[0]} is set, so that nothing may be downloaded",
            remedy=f"unset {_FORBIDDEN_BY[0]}, or leave out --download",
        )
    stay_offline()
    import huggingface_hub
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    # Taken from the environment once, when it is imported, and looked at before every request.
    constants.HF_HUB_OFFLINE = False
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        huggingface_hub.close_session()
