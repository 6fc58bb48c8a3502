"""`python peak_memory.py READER FILE`: what reading a file takes at its peak beyond what the process had before.

A process of its own for each file, since memory that Python has once taken is not given back in whole. Prints JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from malmen_cli.checkpoint.manifest import read_manifest
from malmen_cli.checkpoint.safetensors_file import read_header
from malmen_cli.config import resolve_training
from malmen_cli.errors import BadFacts, MalmenError
from malmen_cli.facts import read_fact_set
from malmen_cli.operations.saved_plan import read_plan


def careless(path: Path) -> None:
    """A reader as one would write it without a thought, for the harness to notice."""
    problems = []
    for number, line in enumerate(path.read_text().split("\n")):
        problems.append(f"{path}:{number}: {line!r} is no JSON")
    raise BadFacts(problems)


READERS: dict[str, Callable[[Path], object]] = {
    "facts": read_fact_set,
    "header": read_header,
    "index": lambda path: read_manifest(path.parent),
    "plan": read_plan,
    "careless": careless,
    "settings": lambda path: resolve_training("malmen", path, {}),
}


def peak() -> int:
    """Bytes. Not ru_maxrss, which begins with what the process was that started this one."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def main() -> None:
    reader, path = READERS[sys.argv[1]], Path(sys.argv[2])
    with suppress(OSError):  # the peak so far, of loading all this, is forgotten where the system allows it
        Path("/proc/self/clear_refs").write_text("5")
    before, began = peak(), time.monotonic()
    accepted: object = None
    said = 0
    try:
        accepted = reader(path)
    except MalmenError as error:
        said = len(error.problems) if isinstance(error, BadFacts) else 1
    facts = len(accepted) if hasattr(accepted, "__len__") else 0  # type: ignore[arg-type]
    print(
        json.dumps(
            {
                "peak": peak() - before,
                "seconds": time.monotonic() - began,
                "accepted": accepted is not None,
                "said": said,
                "facts": facts,
            }
        )
    )


if __name__ == "__main__":
    main()
