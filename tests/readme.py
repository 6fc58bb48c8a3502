"""Reading README-like pages: their code, their commands, their recorded sessions; and running a session anew.

A session stands in blocks fenced as ```console: lines `$ command`, each followed by what it prints. `rerun` runs the
commands of such blocks one after the other in one folder and compares what they print with what is recorded:

    differences = rerun(console_blocks(page), folder, replace={"--minutes 15": "--steps 40"})
    assert not differences, "\\n".join(differences)

What varies from run to run is normalised (`shape`), and what depends on how well an editor was trained is left out:
the rows of tables that hold answers of the edited model, the list of facts that are still wrong, warnings and notes.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ANSWERS = {"after", "answer", "edited", "residual"}
"""Headers of columns that hold what the editor decides: answers of an edited model, figures that sort a table."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^(?: {4}.*)?\n)*^ {4}.*\n(?:^(?: {4}.*)?\n)*", re.MULTILINE)
# Numbers have commas: ten digits without any are an id.
_ID = re.compile(r"\b(?:sha256:)?(?:(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{10,64}|\d{10})\b")


@dataclass(frozen=True)
class Step:
    """One command of a session, and the lines that are recorded below it."""

    command: str
    output: tuple[str, ...]


def code_blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of every block of code, fenced or indented by four."""
    fenced = [(match[1], match[2]) for match in _FENCE.finditer(page)]
    rest = _FENCE.sub("", page)
    indented = ["".join(line[4:] for line in match[0].splitlines(keepends=True)) for match in _INDENTED.finditer(rest)]
    return fenced + [("", text.strip("\n") + "\n") for text in indented]


def console_blocks(page: str) -> list[list[Step]]:
    return [steps(text) for language, text in code_blocks(page) if language == "console"]


def steps(block: str) -> list[Step]:
    """The commands of a block; lines before the first one are none of a command's."""
    found: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif found:
            found[-1][1].append(line)
    return [Step(command, tuple(output)) for command, output in found]


def command_lines(page: str) -> list[str]:
    """Every `malmen ...` line in a block of code, with or without a prompt."""
    lines = [line.strip().removeprefix("$ ") for _, text in code_blocks(page) for line in text.splitlines()]
    return [line for line in lines if re.match(r"malmen( |$)", line)]


def inline_commands(page: str) -> list[str]:
    """Every `malmen verb ...` in running text, but for those whose verb is a placeholder in capitals."""
    text = page
    for pattern in (_FENCE, _INDENTED):
        text = pattern.sub("\n", text)
    return [re.sub(r"\s+", " ", match[1]) for match in re.finditer(r"`(malmen (?:-|[a-z])[^`]*)`", text)]


def shape(text: str) -> str:
    """`text` without what varies from run to run: ids, times, numbers, amounts, folders, and how wide columns are."""
    text = _ID.sub("ID", text)
    text = re.sub(r"(?<![\w.])/[\w./-]+", "PATH", text)
    text = re.sub(r"\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?\S*", "TIME", text)
    text = re.sub(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?%?", "N", text)
    text = re.sub(r"\bN (?:bytes|kB|MB|GB)\b", "N bytes", text)
    text = re.sub(r"\bN (?:s|min)\b", "N s", text)
    # One fact, two facts: the number is not part of the shape.
    text = re.sub(r"\b(\w+)ies\b", r"\1y", text)
    text = re.sub(r"\b(\w{3,}[^\Ws])s\b", r"\1", text)
    return re.sub(r"[\s─]+", " ", text).strip()


def comparable(output: Iterable[str]) -> list[str]:
    """The lines of an output whose shape must be the same in every run; alike lines one after the other are one."""
    lines, skipping = [], False
    for line in output:
        if not line.strip():
            skipping = False
            continue
        if line.startswith("still wrong:"):
            skipping = True
        # Whether a free answer runs into its cap depends on how far a short training came.
        if skipping or re.match(r"(warning|note): |step \d|\.\.\. and |Of [\d,]+ free answers", line):
            continue
        cells = re.split(r" {2,}", line.strip())
        skipping = len(cells) > 2 and bool(ANSWERS & set(cells))
        if not lines or shape(line) != shape(lines[-1]):
            lines.append(line)
    return lines


def differences(recorded: Sequence[str], fresh: Sequence[str]) -> list[str]:
    """How the shapes of two outputs differ, as a diff from the recorded one; nothing where they agree."""
    before, after = ([shape(line) for line in comparable(lines)] for lines in (recorded, fresh))
    return list(difflib.unified_diff(before, after, "recorded", "this run", lineterm="", n=1))


def rerun(
    blocks: Sequence[Sequence[Step]],
    folder: Path,
    *,
    replace: Mapping[str, str] | None = None,
    run: Callable[[str, Path], list[str]] | None = None,
) -> list[str]:
    """Run the commands of all blocks in `folder`, and say where what they print has another shape than is recorded.

    Args:
        folder: where the session begins, with the files that it needs.
        replace: texts in commands, such as a shorter training for a long one.
        run: runs a command in a folder and gives the lines it prints (default: `run_command`, without a terminal).

    Ids that a command names stand for those that this run has printed in the same places.
    """
    found: list[str] = []
    ids: dict[str, str] = {}
    for step in (step for block in blocks for step in block):
        command = step.command
        for old, new in [*(replace or {}).items(), *ids.items()]:
            command = re.sub(rf"\b{old}\b", new, command) if old in ids else command.replace(old, new)
        for word in re.findall(r"\b(?=[0-9a-f]*\d)[0-9a-f]{4,9}\b", command):  # an id's first digits
            known = [new for old, new in ids.items() if old.startswith(word)]
            command = command.replace(word, known[0][: len(word)]) if known else command
        fresh = (run or run_command)(command, folder)
        wrong = differences(step.output, fresh)
        found += [f"$ {step.command}", *wrong] if wrong else []
        for old_line, new_line in zip(comparable(step.output), comparable(fresh), strict=False):
            ids |= dict(zip(_ID.findall(old_line), _ID.findall(new_line), strict=False))
    return found


def run_command(command: str, folder: Path) -> list[str]:
    """What a terminal would show of a command, without colours: both streams, in order."""
    function = f'malmen() {{ {shlex.quote(sys.executable)} -m malmen_cli "$@"; }}\n'
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALMEN", "COLUMNS"))}
    variables = {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONUNBUFFERED": "1", "COLUMNS": "80"}
    done = subprocess.run(
        ["bash", "--norc", "-c", function + command],
        cwd=folder,
        env=kept | {"OMP_NUM_THREADS": "1"} | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
    )
    return done.stdout.splitlines()
