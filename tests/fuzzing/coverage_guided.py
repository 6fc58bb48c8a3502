"""Coverage-guided fuzzing of every parser with atheris: `python tests/fuzzing/coverage_guided.py --inputs 1000000`.

The inputs are shared out among the targets; each runs in a process of its own from sound samples and a dictionary, with
a limit of memory and of time for one input. An exception that is not malmen's own does not end a run: it is counted,
and the first input of each place it came from is kept in the folder that `--findings` names.

Needs atheris (`pip install atheris`), which the tests do not.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from random import Random
from typing import Any

HERE = Path(__file__).resolve().parent
MEMORY = 2048  # MB that a run may take
SLOWEST = 20  # seconds that an input may take
LONGEST = 4096  # bytes of an input
FINDINGS = Path(tempfile.gettempdir()) / "malmen-fuzzing-findings"

# Cheap readers of little structure need fewer inputs than the formats of facts.
_WEIGHTS = {"shown text": 0.5, "entry name": 0.25, "lock file": 0.5, "sidecar": 0.25, "training note": 0.5}


@dataclass(frozen=True)
class Run:
    """What came of one target. `inputs` is libFuzzer's own count, `peak` in MB, of the whole process."""

    target: str
    inputs: int
    accepted: int
    uncaught: int
    peak: int
    seconds: float
    ended: str  # how, where not well


def shares(targets: Sequence[str], inputs: int) -> dict[str, int]:
    """Inputs per target, at least `inputs` in total."""
    total = sum(_WEIGHTS.get(target, 1) for target in targets)
    return {target: int(inputs * _WEIGHTS.get(target, 1) / total) + 1 for target in targets}


def fuzz(target: str, inputs: int, findings: Path, seed: int) -> Run:
    """Run one target in a process of its own."""
    began = time.monotonic()
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="malmen-fuzzing-", dir=memory) as folder:
        command = [sys.executable, str(Path(__file__)), "--target", target, "--inputs", str(inputs)]
        command += ["--folder", folder, "--findings", str(findings), "--seed", str(seed)]
        environment = {**os.environ, "MALMEN_FUZZING_SCRATCH": folder}  # of fuzz_targets.scratch
        done = subprocess.run(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            errors="replace",
            check=False,
        )
        counts = Path(folder) / "counts"
        accepted, uncaught = struct.unpack("<QQ", counts.read_bytes()) if counts.exists() else (0, 0)
    finished = re.search(r"stat::number_of_executed_units:\s+(\d+)", done.stdout)
    peak = re.search(r"stat::peak_rss_mb:\s+(\d+)", done.stdout)
    ended = ""
    if finished is None or done.returncode:
        tail = " ".join(done.stdout.split()[-40:])
        ended = f"exit {done.returncode}: {tail}"
        uncaught += 1  # out of memory, too slow, or a crash of the interpreter itself
    return Run(
        target,
        int(finished[1]) if finished else 0,
        accepted,
        uncaught,
        int(peak[1]) if peak else 0,
        time.monotonic() - began,
        ended,
    )


def table(runs: Sequence[Run]) -> list[str]:
    """The runs in Markdown, their total last."""
    lines = ["| target | inputs | accepted | uncaught | peak MB | seconds |", "|---|---|---|---|---|---|"]
    for run in runs:
        cells = (run.target, run.inputs, run.accepted, run.uncaught, run.peak, f"{run.seconds:.0f}")
        lines.append(f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else cell for cell in cells)} |")
    total = [sum(getattr(run, name) for run in runs) for name in ("inputs", "accepted", "uncaught")]
    peak, seconds = max(run.peak for run in runs), sum(run.seconds for run in runs)
    return [*lines, f"| total | {' | '.join(f'{count:,}' for count in total)} | {peak:,} | {seconds:.0f} |"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of all targets together")
    parser.add_argument("--target", action="append", help="one target, and no other; may be repeated")
    parser.add_argument("--findings", type=Path, default=FINDINGS, help="folder for what crashed (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", help=argparse.SUPPRESS)  # of a run, in the process made for it
    given = parser.parse_args(arguments)
    if given.folder is not None:
        _run_here(given.target[0], given.inputs, Path(given.folder), given.findings.resolve(), given.seed)
    names = given.target or _target_names()
    runs = []
    for target, inputs in shares(names, given.inputs).items():
        runs.append(fuzz(target, inputs, given.findings, given.seed))
        print(f"{target}: {runs[-1].inputs:,} inputs, {runs[-1].uncaught} uncaught {runs[-1].ended}", file=sys.stderr)
    print("\n".join(table(runs)))
    return int(any(run.uncaught or run.ended for run in runs))


# In the process of one target -----------------------------------------------------------------------------------------


def _target_names() -> list[str]:
    sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]
    return list(importlib.import_module("fuzz_targets").PARSERS)


def _run_here(name: str, inputs: int, folder: Path, findings: Path, seed: int) -> None:
    """Does not return: libFuzzer ends the process."""
    import atheris

    sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]
    with atheris.instrument_imports(include=["malmen_cli"]), contextlib.redirect_stderr(io.StringIO()):
        targets = importlib.import_module("fuzz_targets")
    samples = importlib.import_module("fuzz_samples")
    target = targets.PARSERS[name]

    corpus = folder / "corpus"
    corpus.mkdir()
    for number, sample in enumerate(samples.SAMPLES[name] + [x for x in samples.special() if len(x) <= LONGEST]):
        (corpus / str(number)).write_bytes(sample)
    dictionary = folder / "words"
    words = [word for word in samples.WORDS if word and len(word) <= 64]
    quoted = ["".join(rf"\x{byte:02x}" for byte in word) for word in words]
    dictionary.write_text("".join(f'"{word}"\n' for word in quoted))

    counts = folder / "counts"
    counts.write_bytes(bytes(16))
    with counts.open("r+b") as file:
        kept = mmap(file.fileno(), 16)
    seen: set[str] = set()

    def one(data: bytes) -> None:
        accepted, uncaught = struct.unpack_from("<QQ", kept)
        try:
            accepted += bool(target(data))
        except Exception as error:
            uncaught += 1
            _keep(error, data, name, findings, seen)
        struct.pack_into("<QQ", kept, 0, accepted, uncaught)

    flags = [f"-runs={inputs}", f"-seed={seed}", f"-rss_limit_mb={MEMORY}", f"-timeout={SLOWEST}"]
    flags += [f"-max_len={LONGEST}", f"-dict={dictionary}", "-print_final_stats=1", "-verbosity=0"]
    # Options and the corpus only: the samples are no place for what is found.
    os.chdir(folder)
    atheris.Setup([sys.argv[0], *flags, str(corpus)], one, custom_mutator=_mutator(atheris, name))
    atheris.Fuzz()


def _mutator(atheris: Any, target: str) -> Callable[[bytes, int, int], bytes]:
    """libFuzzer's own mutations of bytes, and as often the ones that know JSON, where an input is JSON."""
    mutations = importlib.import_module("fuzz_mutations")

    def mutate(data: bytes, longest: int, seed: int) -> bytes:
        rng = Random(seed)
        if target == "safetensors header" and rng.random() < 0.5:
            try:
                changed = mutations.reheaded(rng, data)
            except (ValueError, RecursionError):
                changed = mutations.reheaded(rng, rng.choice(mutations.SAMPLES[target]))
            return bytes(changed[:longest])
        if target in mutations.TREES and rng.random() < 0.5:
            try:
                tree = json.loads(data)
            except (ValueError, RecursionError):
                tree = rng.choice(mutations.TREES[target])
            try:
                changed = mutations.spelled(rng, mutations.replaced(rng, tree, changes=2))
            except (ValueError, RecursionError):  # numbers of more digits than Python writes, nesting
                changed = b""
            if 0 < len(changed) <= longest:
                return changed
        return bytes(atheris.Mutate(data, longest))

    return mutate


def _keep(error: Exception, data: bytes, target: str, findings: Path, seen: set[str]) -> None:
    """Keep the first input of each place that an exception came from."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{type(error).__name__} {Path(last.filename).name}:{last.lineno}"
    if place in seen:
        return
    seen.add(place)
    findings.mkdir(parents=True, exist_ok=True)
    name = f"{re.sub(r'[^a-z]+', '-', target)}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"
    (findings / name).write_bytes(data)
    (findings / f"{name}.json").write_text(json.dumps({"target": target, "place": place, "error": str(error)[:500]}))


if __name__ == "__main__":
    sys.exit(main())
