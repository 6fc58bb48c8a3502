"""`malmen verify`: reread everything and name what is damaged. Loads no torch."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from malmen_cli.cli.options import (
    JsonOption,
    LockTimeoutOption,
    OnlyModelOption,
    QuietOption,
    WorkspaceOption,
    say_waiting,
)
from malmen_cli.cli.output import epilog, print_json, say, tell
from malmen_cli.errors import ExitCode, OutdatedLedger, UnusableLedger, UsageError
from malmen_cli.ledger import Ledger, Workspace, find_workspace, store, verify_when_quiet
from malmen_cli.ledger.records import ModelRecord
from malmen_cli.ledger.verification import Verification


def register(app: typer.Typer) -> None:
    app.command(
        "verify",
        epilog=epilog(
            ExitCode.DONE,
            ExitCode.FAILED,
            ExitCode.USAGE,
            ExitCode.NO_WORKSPACE,
            ExitCode.LOCKED,
            ExitCode.VERIFICATION_FAILED,
        ),
    )(verify)


def verify(
    model: OnlyModelOption = None,
    expect: Annotated[
        str | None,
        typer.Option("--expect", metavar="DIGEST", help="Also fail unless this is the head entry's id, or the anchor."),
    ] = None,
    anchor: Annotated[
        bool, typer.Option("--anchor", help="Print the anchor: a digest over all that the ledger says, to keep.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Only what takes milliseconds; see below.")] = False,
    lock_timeout: LockTimeoutOption = 10.0,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Reread ledger, objects, editors and checkpoint, and name everything that is damaged.

    \b
    Examples:
      malmen verify
      malmen verify --quick
      malmen verify --model gpt2 --expect "$(cat head-id-kept-elsewhere)"
      malmen verify --anchor > kept-elsewhere

    Someone who rewrites a ledger as a whole, every digest with it, or puts all of it back to an earlier time, is found
    only by a digest that was kept elsewhere. A head's id stands for that model's entries and all that they cover; the
    anchor also for names, paths, settings, editors, splits and what gc has dropped, and changes when these do.

    --quick looks at the seals of the ledger, at which entry follows which, and at sizes, headers and presence of
    objects, editors and checkpoint files. It rereads no tensor, no fact and no stored row: changed bytes in them, and
    in what an entry says, take the whole verification.

    Problems are looked for again while other processes are kept from writing, so that none is reported of work that is
    under way; where one does not finish within --lock-timeout, the verification ends as locked.
    """
    say_waiting()
    if expect is not None and not re.fullmatch("[0-9a-f]{64}", _plain(expect)):
        raise UsageError("--expect takes a whole digest, of 64 digits", remedy="malmen log -q prints ids as a whole")
    place = find_workspace(workspace)
    found = _verified(place, model, expect, quick, lock_timeout)
    if json:
        print_json(
            {
                "sound": not found.problems,
                "checked": dict(found.checked),
                "problems": [{"where": p.where, "what": p.what} for p in found.problems],
                "quick": quick,
                "anchor": found.anchor,
            }
        )
    else:
        for problem in found.problems:
            tell(str(problem))
        if anchor and not found.problems:
            print(found.anchor)
        if not quiet:
            counted = ", ".join(f"{count:,} {_noun(what, count)}" for what, count in sorted(found.checked.items()))
            problems = f"{len(found.problems):,} {_noun('problems', len(found.problems))}"
            sound = "Sound at a glance" if quick else "Sound"
            say(f"Damaged: {problems}; checked {counted}" if found.problems else f"{sound}: {counted} checked")
    if found.problems:
        raise typer.Exit(ExitCode.VERIFICATION_FAILED)


def _verified(
    place: Workspace, model: str | None, expect: str | None, quick: bool, lock_timeout: float
) -> Verification:
    """The verification of a workspace; a database that is no ledger's is damage like any other."""
    from malmen_cli.operations.models import find_model

    try:
        with Ledger.open(place) as ledger:
            with ledger.read() as db:
                chosen = None if model is None else find_model(db, model)
            found = verify_when_quiet(ledger, chosen, quick=quick, timeout=lock_timeout)
            if expect is not None and _plain(expect) != _plain(found.anchor or ""):
                found.attempt("ledger", _expect_head, ledger, chosen, expect, found)
            return found
    except OutdatedLedger:
        raise
    except UnusableLedger as error:
        found = Verification()
        found.report("ledger.db", error.message)
        return found


def _expect_head(ledger: Ledger, chosen: ModelRecord | None, expected: str, found: Verification) -> None:
    """The expected digest is the id of the model's head, or of any model's where none was chosen."""
    with ledger.read() as db:
        heads = [store.head(db, model.id).id for model in (store.models(db) if chosen is None else [chosen])]
    said = f"{expected} was expected, the head is {' or '.join(heads) or 'none'}, the anchor {found.anchor}"
    found.expect(_plain(expected) in map(_plain, heads), "ledger", said)


def _plain(digest: str) -> str:
    return digest.strip().removeprefix("sha256:")


def _noun(plural: str, count: int) -> str:
    if count != 1:
        return plural
    return plural.removesuffix("ies") + "y" if plural.endswith("ies") else plural.removesuffix("s")
