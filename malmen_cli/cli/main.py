"""The `malmen` program: the one place where errors become words and exit statuses. Its verbs: verb_group.py."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from malmen_cli import __version__
from malmen_cli.cli.interruption import insist, interruptible
from malmen_cli.cli.output import complain, epilog, say
from malmen_cli.cli.streams import prepare
from malmen_cli.cli.verb_group import VerbGroup
from malmen_cli.errors import BadFacts, ExitCode, MalmenError

app = typer.Typer(
    name="malmen",
    cls=VerbGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=epilog(
        ExitCode.DONE,
        ExitCode.FAILED,
        ExitCode.USAGE,
        ExitCode.FACTS_FAILED_CHECK,
        ExitCode.DIFFERS,
        ExitCode.NO_WORKSPACE,
        ExitCode.LOCKED,
        ExitCode.VERIFICATION_FAILED,
        ExitCode.WRONG_BASE,
        ExitCode.REFUSED_BY_GATE,
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


# What typer raises for a wrong command line; it exports no name for it.
_WrongCommandLine: type[Exception] = typer.BadParameter.__bases__[0]


def main() -> None:
    """Run the program; the exit status says how it went (see `malmen_cli.errors.ExitCode`)."""
    with interruptible():
        prepare()
        status = _status()
        try:
            sys.stdout.flush()
        except MalmenError as error:
            complain(error.message, error.remedy)
            status = error.exit_code
        sys.exit(status)


def _status() -> int:
    """Run the verb: its exit status, with whatever went wrong in words. MALMEN_DEBUG=1 adds the traceback."""
    try:
        return int(app(prog_name="malmen", standalone_mode=False) or ExitCode.DONE)
    except _WrongCommandLine as error:
        return _wrong_command_line(error)
    except typer.Abort:
        say("malmen: nobody answered; nothing was done")
        return ExitCode.FAILED
    except Exception as error:
        insist()
        return _failed(error)


def _wrong_command_line(error: Exception) -> int:
    """What typer says of a wrong command line, the near names it knows of included; for no verb at all, the help."""
    message, context = str(getattr(error, "format_message", error.__str__)()), getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(message, file=sys.stderr)
    else:
        usage = None if context is None else f"{' '.join(context.get_usage().split())}; see {context.command_path} -h"
        complain(message[:1].lower() + message[1:].removesuffix("."), usage)
    return ExitCode.USAGE


def _failed(error: Exception) -> int:
    if os.environ.get("MALMEN_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    if isinstance(error, MalmenError):
        if isinstance(error, BadFacts):
            for problem in error.problems:
                say(problem)
        complain(error.message, error.remedy)
        return error.exit_code
    # torch's own error for a full GPU, by name: torch is not imported here.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        complain("out of memory", "Lower --batch-tokens, or use --device cpu.")
    elif isinstance(error, OSError):
        where = "" if error.filename is None else f"{error.filename}: "
        complain(f"{where}{error.strerror or error}", "Check the path, its permissions and the disk's free space.")
    else:
        complain(
            f"unexpected error: {type(error).__name__}: {error}",
            "This is a defect of malmen. Run it again with MALMEN_DEBUG=1 for the traceback, and report that.",
        )
    return ExitCode.FAILED


if __name__ == "__main__":
    main()
