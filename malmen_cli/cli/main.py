"""The `malmen` program: its verbs, and the one place where errors become words and exit statuses."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from malmen_cli import __version__
from malmen_cli.cli import apply, init, log, models, revert, show, train, verify
from malmen_cli.cli.output import complain, epilog, say
from malmen_cli.errors import BadFacts, ExitCode, MalmenError

app = typer.Typer(
    name="malmen",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=epilog(
        ExitCode.DONE,
        ExitCode.FAILED,
        ExitCode.USAGE,
        ExitCode.FACTS_FAILED_CHECK,
        ExitCode.NO_WORKSPACE,
        ExitCode.LOCKED,
        ExitCode.VERIFICATION_FAILED,
        ExitCode.WRONG_BASE,
        ExitCode.INTERRUPTED,
    ),
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"malmen {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Edit thousands of facts in a local language model at once; show, verify and exactly undo every edit.

    \b
    Examples:
      malmen init
      malmen models add gpt2 ./my-gpt2
      malmen train training-facts.jsonl --model gpt2
      malmen apply facts.jsonl
      malmen log
      malmen revert HEAD
    """


for verb in (init, train, apply, log, show, revert, verify):
    verb.register(app)
app.add_typer(models.app)


class Interrupted(BaseException):
    """SIGINT or SIGTERM: every `finally` runs, and the ledger is left settled or recoverable."""


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(signal.Signals(number).name)


def main() -> None:
    """Run the program; the exit status says how it went (see `malmen_cli.errors.ExitCode`)."""
    # Python runs no `finally` on SIGTERM by default.
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except MalmenError as error:
        if os.environ.get("MALMEN_DEBUG") == "1":
            raise
        if isinstance(error, BadFacts):
            for problem in error.problems:
                say(problem)
        complain(error.message, error.remedy)
        sys.exit(error.exit_code)
    except Interrupted as signal_name:
        complain(f"interrupted ({signal_name})", "Nothing is half done: the next command settles what was under way.")
        sys.exit(ExitCode.INTERRUPTED)
    except (MemoryError, RuntimeError) as error:
        # torch's own error for a full GPU, by name: torch is not imported here.
        if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":
            raise
        complain("out of memory", "Lower --batch-tokens, or use --device cpu.")
        sys.exit(ExitCode.FAILED)
    except BrokenPipeError:
        # Whoever read our output has had enough; Python must not try to flush into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.DONE)
    except OSError as error:
        complain(str(error), "Check the path, its permissions and the disk's free space.")
        sys.exit(ExitCode.FAILED)


if __name__ == "__main__":
    main()
