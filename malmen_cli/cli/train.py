"""`malmen train`: meta-train an editor for a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from malmen_cli.cli.display import BarDisplay, TrainingDisplay
from malmen_cli.cli.downloading import fetcher
from malmen_cli.cli.fact_source import read_facts
from malmen_cli.cli.first_use import found_or_registered
from malmen_cli.cli.method_options import TextOption
from malmen_cli.cli.options import (
    DeviceOption,
    DownloadOption,
    Dtype,
    FactsArgument,
    FormatOption,
    JsonOption,
    LockTimeoutOption,
    ModelOption,
    OnConflictOption,
    QuietOption,
    SplitOption,
    WorkspaceOption,
    command_line,
    open_ledger,
    refuse_idle,
    was_given,
)
from malmen_cli.cli.output import epilog, plural, print_json, say
from malmen_cli.cli.train_untrained import make_untrained
from malmen_cli.errors import ExitCode, UsageError
from malmen_cli.methods.registry import METHODS, method_named

DEFAULT_MINUTES = 15.0

_OF_UNTRAINED = (
    *("file", "split", "format", "on_conflict", "text", "model", "layers", "method", "config", "seed"),
    *("dtype", "chat_template", "end_of_text", "device", "lock_timeout", "workspace", "json", "quiet"),
)

_OF_FACTS = ("file", "split", "format", "on_conflict")


def register(app: typer.Typer) -> None:
    app.command(
        "train",
        epilog=epilog(
            ExitCode.DONE,
            ExitCode.FAILED,
            ExitCode.USAGE,
            ExitCode.NO_WORKSPACE,
            ExitCode.LOCKED,
            ExitCode.VERIFICATION_FAILED,
            ExitCode.WRONG_BASE,
            ExitCode.INTERRUPTED,
        ),
    )(train)


def train(
    context: typer.Context,
    file: FactsArgument = None,
    split: SplitOption = None,
    model: ModelOption = None,
    download: DownloadOption = False,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps.")] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            help=f"Wall time of the steps, where --steps is not given (default: {DEFAULT_MINUTES:g}); the model "
            "reads all facts before.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of everything random (default: 0).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run of these settings.")] = False,
    recipe: Annotated[
        Literal["malmen", "paper"] | None,
        typer.Option(
            "--recipe",
            help="Where settings start: our defaults, or the choices of arXiv 2311.04661 (default: as --config names "
            "it, else malmen).",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="NAME",
            help=f"The kind of editor: {', '.join(METHODS)}. Those that need no training are only made: ultraedit of "
            "FILE, memit of --text, the others of neither.",
        ),
    ] = "malmen",
    text: TextOption = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Settings as JSON or TOML; flags win over it.")
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option("--layers", metavar="GLOB", help="Layers to edit (default: the registered ones)."),
    ] = None,
    facts_per_step: Annotated[
        int | None, typer.Option("--facts-per-step", help="Most facts edited in one step.")
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", help="Rank of the hyper-network's blocks.")] = None,
    blocks: Annotated[int | None, typer.Option("--blocks", help="Blocks of the hyper-network.")] = None,
    preserved_keys: Annotated[
        int | None, typer.Option("--preserved-keys", help="Keys of unrelated prompts to preserve; 0 for none.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="Of the hyper-network (Adam).")] = None,
    scalar_learning_rate: Annotated[
        float | None, typer.Option("--scalar-learning-rate", help="Of log step size, ridge and preserved strength.")
    ] = None,
    locality: Annotated[float | None, typer.Option("--locality", help="Coefficient of the locality loss.")] = None,
    edit: Annotated[float | None, typer.Option("--edit", help="Coefficient of the loss on the edit prompts.")] = None,
    clip: Annotated[float | None, typer.Option("--clip", help="Largest gradient norm.")] = None,
    batch_tokens: Annotated[int | None, typer.Option("--batch-tokens", help="Padded tokens per model batch.")] = None,
    kept_states: Annotated[
        float | None,
        typer.Option(
            "--kept-states",
            metavar="GIB",
            help="Disk for hidden states below the first edited layer, which are then made but once; of training rows "
            "and of held-out ones each (default: 16).",
        ),
    ] = None,
    held_out: Annotated[float | None, typer.Option("--held-out", help="Share of rows kept for validation.")] = None,
    validate_every: Annotated[
        int | None, typer.Option("--validate-every", help="Steps (default: a fifth of the run).")
    ] = None,
    save_every: Annotated[
        int | None,
        typer.Option(
            "--save-every",
            help="Steps between resumable states, one every ten minutes aside (default: with each validation).",
        ),
    ] = None,
    format: FormatOption = None,
    on_conflict: OnConflictOption = None,
    device: DeviceOption = "auto",
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            "--dtype", help="What the language model computes in, now and with this editor (default: as its files)."
        ),
    ] = None,
    chat_template: Annotated[
        bool | None,
        typer.Option("--chat-template", help="Prompts are a user's turn of an instruct model's chat template."),
    ] = None,
    end_of_text: Annotated[
        bool | None,
        typer.Option(
            "--end-of-text/--no-end-of-text",
            help="Supervise the end of the answer too (default: of sequence-to-sequence models).",
            show_default=False,
        ),
    ] = None,
    lock_timeout: LockTimeoutOption = 0.0,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Meta-train an editor on a fact file; the best one by held-out facts is kept in the workspace.

    \b
    Examples:
      malmen train training-facts.jsonl --model gpt2
      malmen train --model gpt-j --split zsre --download
      malmen train training-facts.jsonl --minutes 20 --seed 1
      malmen train training-facts.jsonl --steps 2000 --resume
      malmen train training-facts.jsonl --recipe paper --steps 100
      malmen train training-facts.jsonl --method ultraedit     # seconds: only a normaliser is calibrated

    Facts with rephrases and unrelated prompts teach it to generalise and to leave other answers alone.
    """
    from malmen_cli.config import resolve_training

    chosen = method_named(method)
    if not chosen.trained:
        refuse_idle(context, f"{method}, which is not trained", used=_OF_UNTRAINED)
        idle = (() if chosen.per_fact else _OF_FACTS) + (() if chosen.seeded else ("seed",))
        refuse_idle(context, f"making an editor of {method}", idle=idle)
        flags_of_run: dict[str, Any] = {
            "dtype": dtype,
            "chat_template": chat_template,
            "end_of_text": end_of_text,
            "seed": seed,
        }
        if layers is not None:
            flags_of_run["layers"] = layers
        make_untrained(
            chosen,
            file,
            split,
            model,
            text,
            config,
            flags_of_run,
            workspace=workspace,
            format=format,
            on_conflict=on_conflict,
            device=device,
            lock_timeout=lock_timeout,
            json=json,
            quiet=quiet,
        )
        return
    if text is not None:
        raise UsageError(f"{method} makes no use of running text", remedy="Leave out --text.")
    flags: dict[str, Any] = {
        "method": method if was_given(context, "method") else None,
        "dtype": dtype,
        "chat_template": chat_template,
        "end_of_text": end_of_text,
        "steps": steps,
        "minutes": minutes,
        "seed": seed,
        "facts_per_step": facts_per_step,
        "learning_rate": learning_rate,
        "scalar_learning_rate": scalar_learning_rate,
        "locality": locality,
        "edit": edit,
        "clip": clip,
        "batch_tokens": batch_tokens,
        "kept_states": kept_states,
        "held_out": held_out,
        "validate_every": validate_every,
        "save_every": save_every,
        "editor.rank": rank,
        "editor.blocks": blocks,
        "editor.preserved_keys": preserved_keys,
    }
    settings = resolve_training(recipe, config, flags)
    if settings.steps is None and settings.minutes is None:
        settings = settings.model_copy(update={"minutes": DEFAULT_MINUTES})
    facts = read_facts(file, split, workspace=workspace, format=format, on_conflict=on_conflict)
    from malmen_cli.operations.active import active_now
    from malmen_cli.operations.models import pick_device
    from malmen_cli.operations.train import train_editor
    from malmen_cli.training.loop import Watcher

    with open_ledger(workspace, writing=True) as ledger, BarDisplay() as bar:
        fetch = fetcher(ledger, bar, quiet=quiet) if download else None
        record = found_or_registered(ledger, model, lock_timeout=lock_timeout, fetch=fetch, layers=layers)
        display = TrainingDisplay(bar, quiet=quiet)
        done = train_editor(
            ledger,
            record,
            facts,
            settings,
            command=command_line(),
            layers=layers,
            device=pick_device(device),
            resume=resume,
            watcher=Watcher(display.told, display.capturing, display.step, display.validated),
            lock_timeout=lock_timeout,
        )
        with ledger.read() as db:
            in_force = active_now(db, record).editor_id
    progress, diverged = done.trained.progress, done.trained.diverged
    if diverged is not None:
        say(f"warning: {diverged}: the best editor before that is kept, of step {progress.best_step:,}")
    if json:
        print_json(
            {
                "editor": done.record.id,
                "model": record.name,
                "rows": len(done.split.train),
                "held_out": len(done.split.held_out),
                "dropped_prompts": done.split.dropped,
                "left_out": len(done.split.left_out),
                "steps": progress.step,
                "best_step": progress.best_step,
                "facts_seen": progress.facts,
                "seconds": progress.elapsed,
                "diverged": diverged,
                "history": progress.history,
                "config": settings.model_dump(mode="json"),
            }
        )
    elif quiet:
        print(done.record.id)
    else:
        print(
            f"Editor {done.record.id}: best of {plural(progress.step, 'step')} over {plural(progress.facts, 'fact')} "
            f"in {progress.elapsed / 60:.1f} min (step {progress.best_step:,})"
        )
        if in_force is not None:
            print(f"Move the active facts to it: malmen rebase --editor {done.record.id} --model {record.name}")
            return
        by = "" if settings.method == "malmen" else f" --method {settings.method}"
        print(f"Use it: malmen apply FILE --model {record.name}{by}")
