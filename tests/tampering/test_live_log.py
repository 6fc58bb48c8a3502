"""R6, the log beside a database in use: a damaged one loses its newest commits, and never gives a mixture.

SQLite stops reading its log at the first frame whose checksum is wrong. What is left is an earlier state of the ledger
as a whole, seals and all. `verify` finds that by the checkpoint, which is ahead of it; where the lost commits changed
no checkpoint (`data add`), nothing inside tells them from commits that were never made, and only an anchor does. A log
is there only while a process writes or after it was killed: whoever closes the database last empties it.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from figures import Figures
from ledger_world import FAST, apply, dump, fact
from mutations import flipped
from rich_world import rich_world
from tampered_world import run

from malmen_cli.errors import ExitCode, UnusableLedger
from malmen_cli.ledger import Ledger, Workspace, add_split

FRAME, HEAD = 24, 32  # bytes before each page in a log; before the first frame


class LiveLog:
    """A copy of a world whose log holds commits that are nowhere else, as a killed process leaves it."""

    def __init__(self, folder: Path, last: str) -> None:
        self.last = last
        workspace = rich_world(folder / "first")
        with Ledger.open(workspace, writing=True) as ledger:
            ledger._connection.execute("PRAGMA wal_autocheckpoint = 0")
            add_split(ledger, "one", folder / "first" / "facts.jsonl")
            apply(ledger, fact("f"))
            if last == "data add":
                add_split(ledger, "two", folder / "first" / "facts.jsonl")
            # Copied before the clean close, and put back where its paths lead.
            shutil.copytree(workspace.root, folder / "killed")
        shutil.rmtree(workspace.root)
        (folder / "killed").rename(workspace.root)
        self.workspace = workspace
        self.log = workspace.database.with_name("ledger.db-wal")
        self.database, self.sound = workspace.database.read_bytes(), self.log.read_bytes()
        self.rows = self.read(self.sound)
        self.anchor = json.loads(run("verify", "--json", "--workspace", workspace.root)[1])["anchor"]

    def put(self, log: bytes) -> None:
        self.workspace.database.with_name("ledger.db-shm").unlink(missing_ok=True)
        self.workspace.database.write_bytes(self.database)
        self.log.write_bytes(log)

    def read(self, log: bytes) -> object:
        """Every row, read of a copy: what the log gives together with the database."""
        self.put(log)
        with TemporaryDirectory(dir=FAST) as folder:
            copy = Workspace(Path(folder))
            for name in ("ledger.db", "ledger.db-wal"):
                shutil.copy(self.workspace.root / name, copy.root)
            try:
                return dump(copy)
            except UnusableLedger:
                return None

    def states(self) -> list[object]:
        """What there is after every whole frame: the state of a commit, early or late."""
        page = int.from_bytes(self.database[16:18], "big")
        return [self.read(self.sound[:end]) for end in range(HEAD, len(self.sound) + 1, FRAME + page)]

    def verify(self, log: bytes, *options: str) -> int:
        self.put(log)
        return run("verify", *options, "--workspace", self.workspace.root)[0]


@pytest.fixture(scope="module", params=["apply", "data add"])
def live(request: pytest.FixtureRequest) -> Iterator[LiveLog]:
    with TemporaryDirectory(dir=FAST) as folder:
        live = LiveLog(Path(folder), request.param)
        yield live


def test_a_damaged_log_gives_an_earlier_state_or_is_found(live: LiveLog, full: bool, figures: Figures) -> None:
    chance, states = random.Random(9), live.states()
    assert live.verify(live.sound, "--expect", live.anchor) == ExitCode.DONE
    size = len(live.sound)
    logs = [(f"bit {bit}", flipped(live.sound, bit)) for bit in chance.sample(range(8 * size), 240 if full else 12)]
    logs += [(f"cut to {end}", live.sound[:end]) for end in chance.sample(range(size), 60 if full else 4)]
    logs += [("emptied", b"")]
    counts: Counter[str] = Counter()
    bad = []
    for what, log in logs:
        rows = live.read(log)
        status, anchored = live.verify(log), live.verify(log, "--expect", live.anchor)
        if rows == live.rows:
            counts["no change"] += 1
            counts["false alarms"] += (status, anchored) != (ExitCode.DONE, ExitCode.DONE)
        else:
            counts["logical"] += 1
            counts["mixtures"] += rows not in states
            counts["found"] += status == ExitCode.VERIFICATION_FAILED
            counts["found with --expect"] += anchored == ExitCode.VERIFICATION_FAILED
            if anchored != ExitCode.VERIFICATION_FAILED or rows not in states:
                bad.append(what)
    figures(
        "R6: a damaged log of a database in use",
        newest_commit=live.last,
        tried=len(logs),
        logical=counts["logical"],
        mixtures=counts["mixtures"],
        found=counts["found"],
        found_with_an_anchor=counts["found with --expect"],
        no_change=counts["no change"],
        false_alarms=counts["false alarms"],
    )
    assert bad == [] and counts["false alarms"] == counts["mixtures"] == 0
    if live.last == "apply":  # the checkpoint tells, whatever was lost of it
        assert counts["found"] > 0.9 * counts["logical"]


def test_a_clean_close_leaves_no_log(tmp_path: Path) -> None:
    with TemporaryDirectory(dir=FAST) as folder:
        workspace = rich_world(Path(folder))
        with closing(Ledger.open(workspace, writing=True)) as ledger:
            apply(ledger, fact("f"))
        assert not workspace.database.with_name("ledger.db-wal").exists()
