"""What a crowd has done, against what its ledgers and its checkpoint say in the end."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ledger_world import _solve, tiny
from safetensors_folders import EDITED

from malmen_cli.checkpoint.digests import digest_file, short
from malmen_cli.checkpoint.durable import TEMPORARY
from malmen_cli.checkpoint.lock import LOCK_NAME
from malmen_cli.errors import ExitCode
from malmen_cli.ledger import Ledger, ModelRecord, Workspace, active_facts, recover, store, verify_ledger

# What a command may end with besides success and the lock: nothing to revert, a split that was removed meanwhile.
EXPECTED = {"revert": {ExitCode.USAGE}, "data remove": {ExitCode.USAGE}, "eval": {ExitCode.USAGE}}
READERS = {"plan", "eval", "export"}


@dataclass
class Verdict:
    """Figures of a crowd; `wrong` are the things that must not be, in words."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    ends: Counter[int] = field(default_factory=Counter)  # exit statuses of commands

    def fault(self, kind: str, what: str) -> None:
        self.counts[kind] += 1
        self.wrong.append(f"{kind}: {what}")

    def summary(self) -> str:
        return "\n".join([f"{len(self.wrong)} things are wrong, among them:", *sorted(set(self.wrong))[:20]])

    def figures(self) -> dict[str, int]:
        names = ("commands", "committed", "refused", "killed_holding", "killed_pending", "interrupted_seen")
        bad = ("lost", "gaps", "unexplained", "inconsistent", "false_alarms", "failures", "unsound", "stuck")
        return {name: self.counts[name] for name in (*names, *bad)}


def judge(
    folder: Path,
    worlds: list[Path],
    counted: dict[str, Any],
    *,
    may_fail: frozenset[int] = frozenset(),
    real: bool = False,
) -> Verdict:
    """Settle what the last kills left, and compare.

    Args:
        may_fail: exit statuses that this crowd's commands may have. real: the mathematics was no stand-in, so that what
            the active facts give is known from the ledger alone.
    """
    found = Verdict()
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    begun = {event["token"]: event for event in events if event["event"] == "begun"}
    ended = {event["token"]: event for event in events if event["event"] in ("done", "failed")}
    stages = Counter(event["stage"] for event in events if event["event"] == "killed")
    found.counts["commands"] = len(begun)
    found.counts["killed_pending"] = stages["pending"] + stages["half"] + stages["written"]
    found.counts["killed_holding"] = counted["killed"] - found.counts["killed_pending"]
    for _ in range(counted["stuck"]):
        found.fault("stuck", "a process did not end")
    for _ in range(counted["crashed"]):
        found.fault("failures", "a process crashed")
    for event in events:
        if event["event"] == "inconsistent":
            found.fault("inconsistent", f"{event['verb']}: {event['message']}")
    pending = {short(event["entry"]): event["token"] for event in events if event["event"] == "pending"}
    killed = {digest for digest, token in pending.items() if token not in ended}
    for event in ended.values():
        _judge_end(event, found, may_fail, killed)
    for world in worlds:
        mine = {token: event for token, event in begun.items() if event["world"] == str(world)}
        _judge_ledger(world, mine, ended, found, real)
    return found


def _judge_end(event: dict[str, Any], found: Verdict, may_fail: frozenset[int], killed: set[str]) -> None:
    """`killed`: entries that a killed process left pending, and which are truly interrupted until somebody comes."""
    code, verb = event.get("code", 0), event["verb"]
    found.ends[code] += 1
    if code == 0:
        return
    if code == ExitCode.WRONG_BASE and verb in READERS and "is not settled" in event["message"]:
        return  # true: whoever was killed left it so, until the next writer comes
    if code == ExitCode.LOCKED:
        found.counts["refused"] += 1
        if " is held by " not in event["message"] and "while this command read it" not in event["message"]:
            found.fault("failures", f"{verb} does not say who holds it: {event['message']}")
    elif verb == "verify" and code == ExitCode.VERIFICATION_FAILED:
        first = event["problems"][0]
        if "it was interrupted" in first["what"] and first["where"].split()[1] in killed:
            found.counts["interrupted_seen"] += 1
        else:
            found.fault("false_alarms", str(event["problems"]))
    elif code not in EXPECTED.get(verb, set()) | may_fail:
        found.fault("failures", f"{verb} ended with {code}: {event['message']}")


def _judge_ledger(
    world: Path, begun: dict[str, dict[str, Any]], ended: dict[str, dict[str, Any]], found: Verdict, real: bool
) -> None:
    with Ledger.open(Workspace(world / ".malmen"), writing=True) as ledger:
        model = tiny(ledger)
        recovered = recover(ledger, model, "malmen recover")
        if recovered.error is not None:
            found.fault("unsound", f"recover: {recovered.error.message}")
        with ledger.read() as db:
            entries = store.entries(db, model.id)[::-1]
        numbers = [entry.number for entry in entries]
        parents = [entry.parent for entry in entries]
        if numbers != list(range(1, len(entries) + 1)) or parents != [None, *(entry.id for entry in entries[:-1])]:
            found.fault("gaps", f"numbers {numbers}")
        by_token: Counter[str] = Counter()
        for entry in entries[1:]:
            tokens = [word for word in entry.command.split() if word in begun]
            by_token.update(tokens)
            failed = [token for token in tokens if token in ended and ended[token]["event"] == "failed"]
            if len(tokens) != 1 or failed:
                found.fault("unexplained", f"#{entry.number} {entry.command} {[ended[token] for token in failed]}")
        ids = {entry.id for entry in entries}
        for token, event in begun.items():
            end = ended.get(token)
            if end is not None and end["event"] == "done" and end["verb"] in ("apply", "revert") and end["entry"]:
                found.counts["committed"] += 1
                if end["entry"] not in ids or by_token[token] != 1:
                    found.fault("lost", f"{event['verb']} {end['entry']}")
        if not real:
            _judge_checkpoint(ledger, model, found)
        for difference in recovered.differences:
            found.fault("unsound", difference)
        for problem in verify_ledger(ledger).problems:
            found.fault("unsound", str(problem))
        left = [path.name for folder in (model.path, ledger.workspace.root) for path in folder.iterdir()]
        for name in left:
            if name == LOCK_NAME or name.startswith(TEMPORARY):
                found.fault("unsound", f"{name} was left")


def _judge_checkpoint(ledger: Ledger, model: ModelRecord, found: Verdict) -> None:
    """Every edited tensor holds just what the stand-in makes of the active facts, from the base."""
    with ledger.read() as db:
        wanted = {change.name: change.after for change in _solve(ledger, model, active_facts(store.fold(db, model.id)))}
    for name in EDITED:
        slot = model.manifest.slot(name)
        path = model.path / model.manifest.tensors[name].file
        if digest_file(path, slot.start, slot.length) != wanted[name]:
            found.fault("unsound", f"{name} is not what the active facts give")
