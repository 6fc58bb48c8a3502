"""R6: after every kind of command, done or refused, `malmen verify` finds nothing, whole and at a glance."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from figures import Figures
from ledger_world import FAST
from program import verbs
from tampered_world import run
from tiny_models import make_fact, make_facts, make_world, save_tiny_model, write_facts

from malmen_cli.errors import ExitCode

# With the status that a command ends in where that is not 0; NEW is the newest editor, OLD the first.
COMMANDS = """
data add few FILE
data add few MORE --replace
data add more FILE
data remove more
data list
plan FILE --quick
apply FILE --dry-run
apply FILE
apply FILE
apply MORE
apply MORE --output OUT
eval --split few
log
show
models list
models show tiny
diff base HEAD
export --output OUT2
revert '#2' --fact 1
revert HEAD
train TRAINING --config SETTINGS
train TRAINING --config SETTINGS --seed 7
rebase --editor NEW
apply OTHER
recover
models add other SECOND
models move other SECOND
gc --leftovers --training --states --editors --yes
revert '#3'
init .
apply NOWHERE -> 2
revert '#99' -> 2
verify --expect 0000000000000000000000000000000000000000000000000000000000000000 -> 12
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(dir=FAST) as folder:
        yield Path(folder)


def test_no_command_leaves_anything_that_verify_objects_to(folder: Path, figures: Figures) -> None:
    make_world(folder)
    save_tiny_model(folder / "SECOND", "gptj", seed=5)
    write_facts(folder / "FILE", make_facts(3))
    write_facts(folder / "MORE", [make_fact(1, "Oslo"), make_fact(5)])
    write_facts(folder / "OTHER", make_facts(2, start=20))
    write_facts(folder / "TRAINING", make_facts(24, start=4000))
    settings = {"steps": 2, "editor": {"rank": 4, "blocks": 1}, "facts_per_step": 8, "batch_tokens": 512}
    (folder / "SETTINGS").write_text(json.dumps(settings | {"held_out": 0.2}))
    alarms, tried, seen = [], 0, set()
    for line in COMMANDS.strip().splitlines():
        command, _, expected = line.partition(" -> ")
        words = [word.strip("'") for word in command.split()]
        seen.add(tuple(words[:2]) if tuple(words[:2]) in verbs() else (words[0],))
        words = [str(folder / w) if (w.isupper() and w != "HEAD" and w != "NEW") or w == "OUT2" else w for w in words]
        if "NEW" in words:
            models = json.loads(run("models", "list", "--json", "--workspace", folder)[1])
            words[words.index("NEW")] = models[0]["editors"][0]["id"]
        where = [str(folder)] if words[0] == "init" else ["--workspace", str(folder)]
        words = [word for word in words if word != "."]
        if words[0] not in ("data", "models", "gc", "init", "recover", "log", "verify"):
            where += ["-m", "tiny"]
        status, said = run(*words, *where)
        assert status == int(expected or 0) or (not expected and status == ExitCode.FACTS_FAILED_CHECK), (line, said)
        for options in ((), ("--quick",)):
            tried += 1
            status, said = run("verify", *options, "--workspace", folder)
            if status != ExitCode.DONE:
                alarms.append(f"after {line}: {said}")
    figures("R6: verify after every kind of command", kinds=len(seen), verifications=tried, false_alarms=len(alarms))
    assert alarms == []
    assert set(verbs()) - seen <= {("demo",), ("models", "families")}
