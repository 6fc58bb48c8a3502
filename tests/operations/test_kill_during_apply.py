"""SIGKILL at random moments of an apply of 1,000 facts: the next writing command leaves exactly before or after."""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors_folders import file_digests
from tiny_models import environment, make_facts, make_world, start_malmen, write_facts

from malmen_cli.checkpoint.lock import LOCK_NAME
from malmen_cli.errors import ExitCode
from malmen_cli.ledger import store, verify_ledger, writing
from malmen_cli.operations.active import active_now

FACTS = 1000
ANYWHERE, WHILE_WRITING = 8, 12  # moments; of the second kind most fall between the first object and the unlock

# Six of an apply's seven seconds go to importing torch and transformers, where a kill says nothing. So one process
# imports them and forks, for each line of arguments, a child that is from there on what `python -m malmen_cli` is.
PRELOADED = """
import json, os, sys
import transformers.models.gpt2.modeling_gpt2
import malmen_cli.operations.apply, malmen_cli.operations.models
from malmen_cli.cli.main import main
for line in sys.stdin:
    child = os.fork()
    if not child:
        sys.argv = ["malmen", *json.loads(line)]
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            main()
        except SystemExit as end:
            os._exit(end.code or 0)
        os._exit(1)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass
class Lane:
    """A world that is put back as it was before each run."""

    folder: Path
    facts: Path
    chance: random.Random

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.world = make_world(self.folder)
        self.before = file_digests(self.world.checkpoint)
        self.pristine = self.folder.with_name(f"{self.folder.name}-pristine")
        shutil.copytree(self.folder, self.pristine)
        self.objects = self.count_objects()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self.malmen = subprocess.Popen([sys.executable, "-c", PRELOADED], env=environment(), **pipes)

    def count_objects(self) -> int:
        return sum(1 for path in self.world.workspace.objects.rglob("*") if path.is_file())

    def apply(self, kill: Callable[[float, float | None], bool]) -> tuple[int, float, float]:
        """Run `malmen apply` from the start; `kill(seconds, seconds since the first new object)` says when to kill.

        Returns:
            Exit status, and the seconds at which writing began and ended.
        """
        shutil.rmtree(self.folder)
        shutil.copytree(self.pristine, self.folder)
        arguments = ["apply", str(self.facts), "--device", "cpu", "--sample", "0"]
        arguments += ["--workspace", str(self.world.workspace.root)]
        self.malmen.stdin.write(f"{json.dumps(arguments)}\n")
        self.malmen.stdin.flush()
        process = int(self.malmen.stdout.readline())
        began, wrote, unlocked = time.monotonic(), None, None
        while not select.select([self.malmen.stdout], [], [], 0.0005 if wrote is not None else 0.005)[0]:
            now = time.monotonic() - began
            if wrote is None and self.count_objects() > self.objects:
                wrote = now
            if wrote is not None and unlocked is None and not (self.world.checkpoint / LOCK_NAME).exists():
                unlocked = now
            if kill(now, None if wrote is None else now - wrote):
                with suppress(ProcessLookupError):  # it may have ended just now
                    os.kill(process, signal.SIGKILL)
                break
        ended = time.monotonic() - began
        return int(self.malmen.stdout.readline()), wrote or 0.0, unlocked or ended

    def settled(self) -> tuple[dict[str, str], int, int]:
        """What the next writing command leaves: the checkpoint's files, entries and active facts."""
        with self.world.ledger() as (ledger, model):
            with writing(ledger, model, "malmen apply other-facts.jsonl"):
                pass
            with ledger.read() as db:
                entries, active = store.entries(db, model.id), len(active_now(db, model).facts)
                assert store.pending_entry(db, model.id) is None
            assert verify_ledger(ledger).problems == []
        return file_digests(self.world.checkpoint), len(entries), active

    def run(self) -> list[str]:
        """Kill at half of the moments and settle after each; says what came of it and whether it was half done."""
        with self.malmen:
            return self.killed_and_settled()

    def killed_and_settled(self) -> list[str]:
        status, wrote, unlocked = self.apply(lambda now, writing: False)
        assert status in (ExitCode.DONE, ExitCode.FACTS_FAILED_CHECK)
        assert 0 < wrote <= unlocked  # both at once where a busy machine looks too seldom
        before, after = (self.before, 1, 0), self.settled()
        assert after[1:] == (2, FACTS)
        assert after[0] != self.before
        found = []
        moments = [(self.chance.uniform(0, unlocked), False) for _ in range(ANYWHERE // 2)]
        moments += [(self.chance.uniform(0, 1.2 * (unlocked - wrote)), True) for _ in range(WHILE_WRITING // 2)]
        for moment, is_of_writing in moments:

            def due(
                now: float, writing: float | None, moment: float = moment, is_of_writing: bool = is_of_writing
            ) -> bool:
                return writing is not None and writing >= moment if is_of_writing else now >= moment

            self.apply(due)
            with self.world.ledger() as (ledger, model), ledger.read() as db:
                pending = store.pending_entry(db, model.id) is not None
            settled = self.settled()
            assert settled in (before, after), (
                f"killed at {moment:.3f} s ({'of writing' if is_of_writing else 'of all'})"
            )
            found.append(("pending, " if pending else "") + ("after" if settled == after else "before"))
        return found


def test_twenty_kills_leave_before_or_after(tmp_path: Path) -> None:
    bare = [replace(fact, rephrases=(), unrelated=(), target="Lima") for fact in make_facts(FACTS)]
    facts = write_facts(tmp_path / "facts.jsonl", bare)
    lanes = [Lane(tmp_path / name, facts, random.Random(name)) for name in ("one", "two")]
    with ThreadPoolExecutor(2) as pool:
        found = [outcome for outcomes in pool.map(Lane.run, lanes) for outcome in outcomes]
    assert len(found) == ANYWHERE + WHILE_WRITING
    assert "before" in found  # a control: kills do come in time
    print(*found, sep="\n")


def test_the_lock_of_a_killed_apply_does_not_stay(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    facts = write_facts(tmp_path / "facts.jsonl", make_facts(3))
    with start_malmen(world, "apply", facts) as process:
        while process.poll() is None and not (world.checkpoint / LOCK_NAME).exists():
            time.sleep(0.002)
        process.kill()
    assert (world.checkpoint / LOCK_NAME).exists()
    assert world.apply(*make_facts(3)).entry is not None
    assert not (world.checkpoint / LOCK_NAME).exists()
