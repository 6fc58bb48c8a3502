"""A crowd: processes that write and read one checkpoint for a while, some of which are killed on the way.

Each process has a role and does what the role does again and again, as commands do it: from opening the ledger to
closing it. What it began and how that ended goes into `events.jsonl`, a line each, for `verdict.judge`. The mathematics
is the stand-in of `ledger_world`; all else is the real thing, the commands of the program where they need no torch.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ledger_world
from fork_server import STUCK_AFTER
from ledger_world import fact, tiny
from safetensors_folders import safetensors_bytes

from malmen_cli.checkpoint import patch
from malmen_cli.checkpoint.durable import write_durably
from malmen_cli.checkpoint.lock import LOCK_NAME
from malmen_cli.cli import main
from malmen_cli.errors import MalmenError, UsageError
from malmen_cli.ledger import Ledger, Workspace, add_editor, remaining, store, transactions

STAGES = ("locked", "pending", "half", "written", "applied")
"""Where a process kills itself: with the lock and no more; its row pending; one shard new; all; its row applied."""


def run(
    folder: str,
    roles: list[tuple[str, str]],
    seconds: float,
    seed: int = 0,
    kills: float = 0.0,
    murders: float = 0.0,
    without: list[str] | None = None,
) -> dict[str, Any]:
    """Let the crowd work, and count what cannot be read from the events.

    Args:
        folder: where `events.jsonl` is written. roles: (role, folder of the world) of each process.
        kills: share of writing commands that kill themselves at one of STAGES. murders: how often per second whoever
            the lock file names is killed from outside. without: "lock", "quiet verify": negative controls.
    """
    chance = random.Random(seed)
    end = time.monotonic() + seconds
    living: dict[int, tuple[str, str]] = {}
    killed = murdered = crashed = stuck = 0

    def start(role: tuple[str, str]) -> None:
        number = chance.randrange(1 << 30)
        child = os.fork()
        if child == 0:
            try:
                Worker(Path(folder), Path(role[1]), number, end, kills, without or []).work(role[0])
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(98)
            os._exit(0)
        living[child] = role

    for role in roles:
        start(tuple(role))
    next_murder = time.monotonic() + (chance.expovariate(murders) if murders else 1e9)
    while living:
        for child in list(living):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                role, code = living.pop(child), os.waitstatus_to_exitcode(status)
                killed += code == -signal.SIGKILL
                crashed += code not in (0, -signal.SIGKILL)
                if time.monotonic() < end:
                    start(role)
        now = time.monotonic()
        if murders and now > next_murder and now < end:
            victim = _holder({Path(world) for _, world in roles})
            if victim in living:
                os.kill(victim, signal.SIGKILL)
                murdered += 1
                next_murder = now + chance.expovariate(murders)
        if now > end + STUCK_AFTER:
            stuck += len(living)
            for child in living:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    return {"killed": killed, "murdered": murdered, "crashed": crashed, "stuck": stuck}


def _holder(worlds: set[Path]) -> int | None:
    for world in worlds:
        with contextlib.suppress(OSError, ValueError, KeyError):
            return int(json.loads((world / "model" / LOCK_NAME).read_bytes())["pid"])
    return None


class Worker:
    """One process of the crowd."""

    def __init__(self, home: Path, world: Path, seed: int, end: float, kills: float, without: list[str]) -> None:
        self.world, self.workspace = world, Workspace(world / ".malmen")
        self.chance = random.Random(seed)
        self.end, self.kills = end, kills
        self.events = os.open(home / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.number, self.token, self.fate = 0, "", ""
        self.seen: list[str] = []
        self._patch(without)

    def work(self, role: str) -> None:
        while time.monotonic() < self.end:
            self.number += 1
            self.token = f"0.{os.getpid():07d}{self.number:05d}"  # also a lock timeout of less than a second
            self.fate = self.chance.choice(STAGES) if self.chance.random() < self.kills else ""
            getattr(self, role)()

    def say(self, event: str, **more: Any) -> None:
        line = json.dumps({"event": event, "token": self.token, "world": str(self.world), **more}) + "\n"
        os.write(self.events, line.encode())

    # Roles: writers of entries

    def apply(self) -> None:
        prompts = self.chance.sample(range(60), self.chance.choice((1, 1, 2, 5)))
        facts = [fact(f"prompt {prompt}", f"target {self.chance.randrange(4)}") for prompt in prompts]
        self.attempt("apply", lambda ledger: ledger_world.apply(ledger, *facts).id)

    def apply_seldom(self) -> None:
        """So that those who revert get back to the base now and then."""
        self.apply()
        time.sleep(self.chance.random() * 0.3)

    def revert(self, kinds: tuple[str, ...] = ("apply", "revert")) -> None:
        """An entry that is in effect, and of it one fact or all."""

        def one(ledger: Ledger) -> str:
            with ledger.read() as db:
                fold = store.fold(db, tiny(ledger).id)
            left = remaining(fold)
            chosen = [entry.id for entry in fold if left.get(entry.id) and entry.kind in kinds]
            if not chosen:
                raise UsageError("nothing is in effect")
            with ledger.read() as db:
                target = store.resolve_entry(db, self.chance.choice(chosen[-5:]))
                facts = store.facts_of(db, target)
            self.target = target.id
            some = [fact for fact in facts[:1] if fact.digest in left[target.id]] if self.chance.random() < 0.3 else []
            return ledger_world.revert(ledger, target, *some).id

        self.attempt("revert", one)

    def revert_all(self) -> None:
        """Back to the base, entry by entry; reverting reverts would bring facts back."""
        self.revert(("apply",))
        if self.chance.random() < 0.2:
            time.sleep(self.chance.random() * 0.2)

    def revert_head(self) -> None:
        self.command("revert", "HEAD", "--quiet", "--lock-timeout", self.token)

    def recover(self) -> None:
        self.command("recover", "--json", "--lock-timeout", self.token)
        time.sleep(self.chance.random() * 0.1)

    def attempt(self, verb: str, act: Callable[[Ledger], str]) -> None:
        """A command: begun, and ended with the id of its entry or with an exit status and a message."""
        self.target: str | None = None
        self.say("begun", verb=verb)
        try:
            with Ledger.open(self.workspace, writing=True) as ledger:
                made = act(ledger)
        except MalmenError as error:
            self.say("failed", verb=verb, code=int(error.exit_code), message=error.message)
        except Exception as error:  # anything else is a defect, and counted as one
            self.say("failed", verb=verb, code=1, message=f"{type(error).__name__}: {error}")
        else:
            self.say("done", verb=verb, entry=made)

    # Roles: other writers

    def gc(self) -> None:
        self.command("gc", "--leftovers", "--training", "--editors", "--yes", "--json", "--lock-timeout", self.token)

    def gc_states(self) -> None:
        self.command("gc", "--states", "--leftovers", "--yes", "--json", "--lock-timeout", self.token)

    def data(self) -> None:
        name = f"split-{self.chance.randrange(3)}"
        file = self.world / f"{name}.jsonl"
        if self.chance.random() < 0.7:
            self.command("data", "add", name, str(file), "--replace", "--json")
        else:
            self.command("data", "remove", name, "--quiet")

    def editor(self) -> None:
        """What `malmen train` does at its end: the files of an editor, then its row, held against gc."""
        name = f"editor-{self.token.replace('.', '-')}"
        part = self.workspace.editors / f".{name}.part"

        def add(ledger: Ledger) -> str:
            with ledger.hold("malmen train", timeout=30):
                part.mkdir()
                write_durably(part / "editor.safetensors", safetensors_bytes({"ridge": ("F32", (1,), b"\0\0\x80\x3f")}))
                write_durably(part / "editor.json", b'{"rank": 4}')
                part.rename(self.workspace.editors / name)
                add_editor(ledger, tiny(ledger), name, config={"rank": 4}, scores={"ES": 0.5})
                return name

        self.attempt("editor", add)
        time.sleep(0.05)

    # Roles: readers

    def read(self) -> None:
        chosen = self.chance.choice(("log", "log", "show", "models", "data"))
        if chosen == "log":
            self.look_at_log(self.command("log", "--json"))
        elif chosen == "show":
            self.command("show", "HEAD", "--json")
        else:
            self.command(chosen, "list", "--json")

    def verify(self) -> None:
        quick = ["--quick"] if self.chance.random() < 0.3 else []
        self.command("verify", "--json", *quick)

    # Roles that compute, on a tiny real model

    def real_apply(self) -> None:
        self.command("apply", self.fact_file(), "--device", "cpu", "--json", "--lock-timeout", self.token)

    def real_read(self) -> None:
        chosen = self.chance.choice(("plan", "eval", "diff", "export"))
        if chosen == "plan":
            self.command("plan", self.fact_file(), "--device", "cpu", "--json")
        elif chosen == "eval":
            self.command("eval", "HEAD", "--device", "cpu", "--json")
        elif chosen == "diff":
            found = self.command("diff", "--device", "cpu", "--json")
            if found is not None and found["not_in_ledger"] and found["pending"] is None:
                self.say("inconsistent", verb="diff", message=f"not in the ledger: {found['not_in_ledger']}")
        else:
            self.command("export", "--output", str(self.world / f"export-{self.token}"), "--json")

    def fact_file(self) -> str:
        from tiny_models import make_fact, write_facts

        numbers = self.chance.sample(range(40), self.chance.choice((1, 2, 4)))
        facts = [make_fact(number, self.chance.choice(("Rome", "Lima", "Oslo"))) for number in numbers]
        return str(write_facts(self.world / f"facts-{os.getpid()}.jsonl", facts))

    def command(self, *arguments: str) -> Any:
        """Run the program here; what it printed as JSON, and None where it failed."""
        out, err = io.StringIO(), io.StringIO()
        verb = " ".join(arguments[: 2 if arguments[0] in ("data", "models") else 1])
        self.say("begun", verb=verb)
        sys.argv = ["malmen", *arguments, "--workspace", str(self.workspace.root)]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main._status()
        found = None
        if "--json" in arguments and (code == 0 or out.getvalue()):
            try:
                found = json.loads(out.getvalue())
            except ValueError:
                self.say("inconsistent", verb=verb, message=f"{arguments} printed no JSON: {out.getvalue()[:200]!r}")
        if code in (0, 3):  # 3: done, and the check of a tiny model's edit found it wanting
            entry = (found.get("entry") or {}).get("id") if verb == "apply" and found else None
            self.say("done", verb=verb, entry=out.getvalue().strip() if verb == "revert" else entry)
        else:
            problems = found["problems"][:3] if verb == "verify" and found else []
            self.say("failed", verb=verb, code=code, message=err.getvalue()[:500], problems=problems)
        return found if code == 0 else None

    def look_at_log(self, entries: list[dict[str, Any]] | None) -> None:
        """Numbers without a gap, only the newest pending, and nothing gone or changed that was applied before."""
        if entries is None:
            return
        oldest_first = entries[::-1]
        numbers = [entry["number"] for entry in oldest_first]
        applied = [entry["id"] for entry in oldest_first if entry["status"] == "applied"]
        parents = [entry["parent"] for entry in oldest_first]
        faults = []
        if numbers != list(range(1, len(numbers) + 1)):
            faults.append(f"numbers {numbers}")
        if parents != [None, *[entry["id"] for entry in oldest_first]][: len(parents)]:
            faults.append("parents")
        if len(applied) < len(entries) - 1 or (len(applied) < len(entries) and entries[0]["status"] == "applied"):
            faults.append("more than the newest entry is pending")
        if applied[: len(self.seen)] != self.seen:
            faults.append("an applied entry is gone")
        self.seen = applied
        for what in faults:
            self.say("inconsistent", verb="log", message=what)

    # How it dies

    def reach(self, stage: str) -> None:
        if stage == self.fate:
            self.say("killed", stage=stage)
            os.kill(os.getpid(), signal.SIGKILL)

    def _patch(self, without: list[str]) -> None:
        """Have the stand-in's commands carry this one's token and wait as long, and stop at the stages."""
        real_writing, real_commit = transactions.writing, transactions.commit_entry
        real_write, real_patch = transactions.write_changes, patch.patch_shard
        real_insert = transactions.insert_entry

        @contextlib.contextmanager
        def writing(ledger: Ledger, model: Any, command: str) -> Iterator[object]:
            timeout = self.chance.choice((0, 0, 0.2, 2.0))
            with real_writing(ledger, model, f"{command} {self.token}", timeout) as settlement:
                if self.target is not None:
                    with ledger.read() as db:
                        if not remaining(store.fold(db, model.id))[self.target]:
                            raise UsageError("it is reverted already")
                self.reach("locked")
                yield settlement
                self.reach("applied")

        def insert_entry(*arguments: Any, **options: Any) -> Any:
            entry = real_insert(*arguments, **options)
            self.say("pending", entry=entry.id)
            return entry

        def write_changes(*arguments: Any) -> None:
            self.reach("pending")
            real_write(*arguments)
            self.reach("written")

        def patch_shard(*arguments: Any) -> None:
            real_patch(*arguments)
            self.reach("half")

        set_attribute = setattr
        set_attribute(ledger_world, "writing", writing)
        set_attribute(
            ledger_world,
            "commit_entry",
            lambda ledger, draft: real_commit(ledger, replace(draft, command=f"{draft.command} {self.token}")),
        )
        set_attribute(transactions, "insert_entry", insert_entry)
        set_attribute(transactions, "write_changes", write_changes)
        set_attribute(patch, "patch_shard", patch_shard)
        if "lock" in without:
            _without_lock()
        if "quiet verify" in without:
            from malmen_cli.cli import verify
            from malmen_cli.ledger import verify_ledger

            set_attribute(
                verify,
                "verify_when_quiet",
                lambda ledger, model, quick, timeout: verify_ledger(ledger, model, quick=quick),
            )


def _without_lock() -> None:
    """Negative control: nobody is kept from anything."""
    from malmen_cli.ledger import collection, database, quiet, recovery, registration

    def unlocked(*arguments: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    set_attribute = setattr
    for module in (transactions, collection, database, recovery, registration):
        set_attribute(module, "checkpoint_lock", unlocked)
    set_attribute(transactions, "require_held", lambda folder: None)
    set_attribute(quiet, "writers_kept_out", unlocked)
