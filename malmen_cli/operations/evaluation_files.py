"""Files that `malmen eval` reads and writes beside fact files: running text, and the facts that failed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from malmen_cli.checkpoint.durable import in_words, require_writable, write_durably
from malmen_cli.errors import UsageError
from malmen_cli.facts import Fact, printable
from malmen_cli.facts.decoding import encodable

LARGEST = 64 << 20  # bytes of running text


def running_text(path: Path, option: str = "--drift") -> tuple[str, str]:
    """The text of a UTF-8 file, and its name. Raises UsageError for what cannot be read, or is no text."""
    shown = printable(str(path), limit=None)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{shown} is not UTF-8 text", remedy=f"give {option} a plain text file") from None
    except (OSError, ValueError) as error:
        why = (isinstance(error, OSError) and error.strerror) or str(error)
        raise UsageError(f"cannot read {shown}: {why}", remedy=f"give {option} a plain text file") from error
    if len(data) > LARGEST:
        raise UsageError(f"{shown} is larger than {LARGEST >> 20} MiB", remedy=f"give {option} a part of it")
    if not text.strip():
        raise UsageError(f"{shown} holds no text", remedy=f"give {option} a plain text file")
    return text, encodable(path.name)


def refuse_existing(path: Path, force: bool) -> None:
    """Raises MalmenError where a file of failed facts could not be written, before anything is computed."""
    shown = printable(str(path), limit=None)
    # A pipe or a device, /dev/stdout too, would be replaced by a file.
    if (path.exists() and not path.is_file()) or not path.parent.is_dir():
        raise UsageError(f"{shown} cannot be a file", remedy="name a file in a folder that is there")
    if not force and (path.exists() or path.is_symlink()):
        raise UsageError(f"{shown} is there already", remedy="name another file, or give --force to replace it")
    require_writable(path.absolute().parent)


def write_failed(path: Path, facts: Sequence[Fact], force: bool) -> str:
    """Write facts as malmen's own JSON Lines, and what was done in words.

    No file where there are no facts: it would be no fact file, and one that is replaced would go on naming others.
    """
    refuse_existing(path, force)
    shown = printable(str(path), limit=None)
    if not facts:
        with in_words(path):
            path.unlink(missing_ok=True)
        return f"no fact failed: {shown} was not written"
    write_durably(path, "".join(f"{fact.canonical_json()}\n" for fact in facts).encode())
    return f"{len(facts):,} {'fact' if len(facts) == 1 else 'facts'} that failed: {shown}"
