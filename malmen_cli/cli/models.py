"""`malmen models`: add, list, show, move registered models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from malmen_cli.cli.completion import model_names
from malmen_cli.cli.display import BarDisplay
from malmen_cli.cli.downloading import fetcher
from malmen_cli.cli.options import (
    DownloadOption,
    JsonOption,
    LockTimeoutOption,
    QuietOption,
    WorkspaceOption,
    command_line,
    open_ledger,
)
from malmen_cli.cli.output import epilog, percent, plural, print_fields, print_json, print_table, say
from malmen_cli.errors import ExitCode, UsageError
from malmen_cli.facts import printable
from malmen_cli.language_models.families import CAPTURED, FAMILIES, TOKENISED, as_dict
from malmen_cli.ledger import PATIENCE, Ledger, ModelRecord, active_facts, store
from malmen_cli.methods.registry import METHODS, method_of
from malmen_cli.operations.hub_models import origin_of
from malmen_cli.operations.layers import layers_of

app = typer.Typer(
    name="models", no_args_is_help=True, rich_markup_mode=None, help="Add, list, show and move registered models."
)


def register(parent: typer.Typer) -> None:
    parent.add_typer(app)


_READING = epilog(ExitCode.DONE, ExitCode.FAILED, ExitCode.USAGE, ExitCode.NO_WORKSPACE)


@app.command(
    "add",
    epilog=epilog(
        ExitCode.DONE,
        ExitCode.FAILED,
        ExitCode.USAGE,
        ExitCode.NO_WORKSPACE,
        ExitCode.LOCKED,
        ExitCode.INTERRUPTED,
    ),
)
def add(
    name: Annotated[str, typer.Argument(help="What to call it: letters, digits, '.', '_' and '-'.")],
    source: Annotated[
        str,
        typer.Argument(
            help="Its folder (config, tokenizer, weights), or a model of the local hub cache: org/name, a known name "
            "such as gpt-j, or a snapshot's folder."
        ),
    ],
    download: DownloadOption = False,
    revision: Annotated[
        str | None,
        typer.Option("--revision", metavar="REV", help="Of a model of the hub: a branch, a tag or a commit."),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option("--layers", metavar="GLOB", help="Layers to edit, as globs over module paths; may be repeated."),
    ] = None,
    lock_timeout: LockTimeoutOption = PATIENCE,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Register a model folder: it is edited in place from then on, and its base is kept.

    \b
    Examples:
      malmen models add gpt2 ./my-gpt2
      malmen models add gpt-j EleutherAI/gpt-j-6b --download
      malmen models add pythia pythia-70m --download --revision step3000
      malmen models add llama ./llama --layers 'model.layers.2[0-9].mlp.down_proj'

    A model of the hub cache is not edited in place: it gets a working copy in the workspace, whose weights are linked,
    not copied, where the file system allows. So does a folder with .bin weights alone, which are converted to
    safetensors once; the folder stays as it is.

    With --download, what the cache lacks of a model is fetched into it first: configuration, tokenizer and one set of
    weights. Without, nothing is ever downloaded.
    """
    from malmen_cli.operations.models import is_folder, register_source

    if download and is_folder(source):
        raise UsageError(f"{source} is a folder, and nothing of it is fetched", remedy="Leave out --download.")
    if revision is not None and is_folder(source):
        raise UsageError(f"{source} is a folder, which has no revisions", remedy="Leave out --revision.")
    with open_ledger(workspace, writing=True) as ledger, BarDisplay() as bar:
        if download:
            fetch = fetcher(ledger, bar, quiet=quiet, name=name, revision=revision)
            source = str(fetch(source).folder)
        elif revision is not None:
            from malmen_cli.operations.downloads import cached_revision

            source = str(cached_revision(source, revision).folder)
        registration = register_source(
            ledger, name, source, layers=layers, command=command_line(), timeout=lock_timeout
        )
        if registration.warning:
            say(f"warning: {registration.warning}")
        if registration.note:
            say(f"note: {registration.note}")
        if json:
            print_json(_summary(ledger, registration.model))
        elif quiet:
            print(registration.model.name)
        else:
            _show(ledger, registration.model)


@app.command("list", epilog=_READING)
def list_models(workspace: WorkspaceOption = None, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """List the registered models.

    \b
    Examples:
      malmen models list
      malmen models list --json
    """
    with open_ledger(workspace) as ledger, ledger.read() as db:
        found = [_summary(ledger, model) for model in store.models(db)]
    if json:
        print_json(found)
    elif quiet:
        for model in found:
            print(model["name"])
    elif not found:
        say("No model is registered: malmen models add NAME FOLDER")
    else:
        print_table(
            [
                (
                    m["name"],
                    str(m["model_type"]),
                    str(m["dtype"]),
                    str(m["active_facts"]),
                    str(len(m["editors"])),
                    _origin(m),
                    m["path"],
                )
                for m in found
            ],
            header=("NAME", "TYPE", "DTYPE", "ACTIVE FACTS", "EDITORS", "COPIED FROM", "FOLDER"),
        )


@app.command("show", epilog=_READING)
def show(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A registered model or its folder.", show_default="the only one", autocompletion=model_names
        ),
    ] = None,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show one model: its base, its edited layers, its editors.

    \b
    Examples:
      malmen models show
      malmen models show gpt2 --json
    """
    from malmen_cli.operations.models import find_model

    with open_ledger(workspace) as ledger:
        with ledger.read() as db:
            if name is None and (count := len(store.models(db))) > 1:
                raise UsageError(f"{count} models are registered", remedy="Name one: malmen models show NAME")
            model = find_model(db, name)
        if json:
            print_json(_summary(ledger, model))
        elif quiet:
            print(model.name)
        else:
            _show(ledger, model)


@app.command(
    "move",
    epilog=epilog(
        ExitCode.DONE,
        ExitCode.FAILED,
        ExitCode.USAGE,
        ExitCode.NO_WORKSPACE,
        ExitCode.LOCKED,
        ExitCode.WRONG_BASE,
        ExitCode.INTERRUPTED,
    ),
)
def move(
    name: Annotated[str, typer.Argument(help="A registered model.", autocompletion=model_names)],
    folder: Annotated[Path, typer.Argument(help="Where its folder lies now.")],
    lock_timeout: LockTimeoutOption = PATIENCE,
    workspace: WorkspaceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Say where a model's folder lies now; nothing is moved. It must be exactly as the ledger left it.

    \b
    Examples:
      malmen models move gpt2 ./models/gpt2     # after mv ./my-gpt2 ./models/gpt2
      malmen models move gpt2 ./my-gpt2         # in a copy of a project, whose model is another one than the original's
    """
    from malmen_cli.ledger import move_model

    with open_ledger(workspace, writing=True) as ledger:
        with ledger.read() as db:
            record = store.model_named(db, name)
        moved, settlement = move_model(ledger, record, folder, command=command_line(), timeout=lock_timeout)
    if settlement is not None:
        say(f"note: {settlement}")
    print(moved.name if quiet else f"{moved.name} is at {moved.path} now.")


@app.command("families", epilog=epilog(ExitCode.DONE, ExitCode.FAILED, ExitCode.USAGE))
def families(json: JsonOption = False, quiet: QuietOption = False) -> None:
    """List the families of models that malmen knows: which layers it edits, and where it captures their rows.

    \b
    Examples:
      malmen models families
      malmen models families --json

    A model of another architecture is edited at the MLP down-projections that are found in it, or at those that
    malmen models add --layers names.
    """
    if json:
        print_json([as_dict(family) for family in FAMILIES])
    elif quiet:
        for family in FAMILIES:
            print(family.model_type)
    else:
        for task, captured in CAPTURED.items():
            print(f"{task}: {TOKENISED[task]}; rows at {captured}")
            print_table(
                [
                    ("", family.name, family.model_type, layers, f"last {family.blocks}", family.stored)
                    for family in FAMILIES
                    if family.task == task
                    for layers in family.edited
                ],
                header=("", "FAMILY", "TYPE", "EDITED LAYERS", "BLOCKS", "STORED"),
            )


def _summary(ledger: Ledger, model: ModelRecord) -> dict[str, Any]:
    with ledger.read() as db:
        return {
            "name": model.name,
            "path": str(model.path),
            "base_digest": model.base_digest,
            "model_type": model.architecture.get("model_type"),
            "task": model.architecture.get("task", "causal"),  # as all were before there were others
            "dtype": model.architecture.get("dtype"),
            "layers": model.architecture.get("layers"),
            "head": store.head(db, model.id).id,
            "active_facts": len(active_facts(store.fold(db, model.id))),
            "editors": [
                {
                    "id": editor.id,
                    "created_at": editor.created_at,
                    "per_fact": editor.per_fact,
                    "method": method_of(editor.config).name,
                    "config": editor.config.get("config"),
                    "scores": editor.scores,
                }
                for editor in store.editors(db, model.id)
            ],
            "created_at": model.created_at,
            "origin": origin_of(db, model),
        }


def _show(ledger: Ledger, model: ModelRecord) -> None:
    shown = _summary(ledger, model)
    print_fields(
        [
            ("model", model.name),
            ("folder", printable(str(model.path), limit=None)),
            *([("copied from", _origin(shown))] if shown["origin"] else []),
            ("type", f"{shown['model_type']}, {shown['task']}, {shown['dtype']}"),
            ("base", model.base_digest),
            ("head", shown["head"]),
            ("active facts", str(shown["active_facts"])),
        ]
    )
    print("edited layers")
    print_table(("", layer.tensor, f"{layer.d_in} x {layer.d_out}") for layer in layers_of(model.architecture))
    print("editors" if shown["editors"] else f"editors: none yet (malmen train FILE --model {model.name})")
    print_table(
        ("", editor["id"], editor["created_at"], _scores(editor["scores"]) or _untrained(editor["method"]))
        for editor in shown["editors"]
    )


def _origin(shown: dict[str, Any]) -> str:
    origin = shown["origin"]
    if origin is None:
        return "-"
    if "folder" in origin:
        return f"{printable(origin['folder'], limit=None)} (.bin, converted)"
    converted = " (.bin, converted)" if origin.get("converted") else ""
    return f"{origin.get('repo')} at {str(origin.get('revision'))[:10]}{converted}"


def _untrained(method: str) -> str:
    return "" if METHODS[method].trained else method


def _scores(scores: dict[str, Any]) -> str:
    """Held-out ES/GS/LS at the largest number of facts that was validated."""
    per_size = scores.get("scores", {})
    if not per_size:
        return ""
    size = max(per_size, key=int)
    shares = " / ".join(percent(per_size[size].get(key)) for key in ("ES", "GS", "LS"))
    return f"at {plural(int(size), 'fact')} ES/GS/LS {shares}"
