"""`malmen init`: make a workspace here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from malmen_cli.cli.options import LockTimeoutOption, say_waiting
from malmen_cli.cli.output import epilog, say
from malmen_cli.errors import ExitCode
from malmen_cli.ledger import PATIENCE


def register(app: typer.Typer) -> None:
    app.command("init", epilog=epilog(ExitCode.DONE, ExitCode.FAILED, ExitCode.USAGE, ExitCode.LOCKED))(init)


def init(
    folder: Annotated[Path, typer.Argument(help="Where to make it.", show_default="the current folder")] = Path(),
    lock_timeout: LockTimeoutOption = PATIENCE,
) -> None:
    """Make a workspace (.malmen) with an empty ledger, or upgrade the one that is there.

    \b
    Examples:
      malmen init
      malmen init ~/models

    Commands work in the nearest workspace upwards from the current folder; where there is none, in that of the user's
    data folder (on Linux `malmen init ~/.local/share/malmen`), if one was made there.
    """
    from malmen_cli.ledger import create_workspace

    say_waiting()
    existed = (folder / ".malmen" / "ledger.db").exists()
    workspace = create_workspace(folder, lock_timeout)
    say(f"{'Up to date' if existed else 'Made'}: {workspace.root}")
