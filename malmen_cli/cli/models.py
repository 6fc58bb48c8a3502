"""`malmen models`: add, list, show registered models."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from malmen_cli.cli.completion import model_names
from malmen_cli.cli.options import (
    JsonOption,
    LockTimeoutOption,
    QuietOption,
    WorkspaceOption,
    command_line,
    open_ledger,
)
from malmen_cli.cli.output import epilog, percent, print_fields, print_json, print_table, say
from malmen_cli.errors import ExitCode
from malmen_cli.facts import printable
from malmen_cli.ledger import PATIENCE, Ledger, ModelRecord, active_facts, store
from malmen_cli.operations.hub_models import origin_of
from malmen_cli.operations.layers import layers_of

app = typer.Typer(
    name="models", no_args_is_help=True, rich_markup_mode=None, help="Add, list and show registered models."
)


def register(parent: typer.Typer) -> None:
    parent.add_typer(app)


_READING = epilog(ExitCode.DONE, ExitCode.FAILED, ExitCode.USAGE, ExitCode.NO_WORKSPACE)


@app.command(
    "add", epilog=epilog(ExitCode.DONE, ExitCode.FAILED, ExitCode.USAGE, ExitCode.NO_WORKSPACE, ExitCode.LOCKED)
)
def add(
    name: Annotated[str, typer.Argument(help="What to call it: letters, digits, '.', '_' and '-'.")],
    source: Annotated[
        str,
        typer.Argument(
            help="Its folder (config, tokenizer, safetensors weights), or a model of the local hub cache: org/name, a "
            "known name such as gpt-j, or a snapshot's folder."
        ),
    ],
    layers: Annotated[
        list[str] | None,
        typer.Option("--layers", metavar="GLOB", help="Layers to edit, as globs over module paths; may be repeated."),
    ] = None,
    lock_timeout: LockTimeoutOption = PATIENCE,
    workspace: WorkspaceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Register a model folder: it is edited in place from then on, and its base is kept.

    \b
    Examples:
      malmen models add gpt2 ./my-gpt2
      malmen models add gpt-j EleutherAI/gpt-j-6b
      malmen models add llama ./llama --layers 'model.layers.2[0-9].mlp.down_proj'

    A model of the hub cache is not edited in place: it gets a working copy in the workspace, whose weights are linked,
    not copied, where the file system allows. Nothing is downloaded.
    """
    from malmen_cli.operations.models import register_source

    with open_ledger(workspace, writing=True) as ledger:
        registration = register_source(
            ledger, name, source, layers=layers, command=command_line(), timeout=lock_timeout
        )
        if registration.warning:
            say(f"warning: {registration.warning}")
        if quiet:
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
            model = find_model(db, name)
        if json:
            print_json(_summary(ledger, model))
        elif quiet:
            print(model.name)
        else:
            _show(ledger, model)


def _summary(ledger: Ledger, model: ModelRecord) -> dict[str, Any]:
    with ledger.read() as db:
        return {
            "name": model.name,
            "path": str(model.path),
            "base_digest": model.base_digest,
            "model_type": model.architecture.get("model_type"),
            "dtype": model.architecture.get("dtype"),
            "layers": model.architecture.get("layers"),
            "head": store.head(db, model.id).id,
            "active_facts": len(active_facts(store.fold(db, model.id))),
            "editors": [
                {
                    "id": editor.id,
                    "created_at": editor.created_at,
                    "per_fact": editor.per_fact,
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
            ("type", f"{shown['model_type']}, {shown['dtype']}"),
            ("base", model.base_digest),
            ("head", shown["head"]),
            ("active facts", str(shown["active_facts"])),
        ]
    )
    print("edited layers")
    print_table(("", layer.tensor, f"{layer.d_in} x {layer.d_out}") for layer in layers_of(model.architecture))
    print("editors" if shown["editors"] else f"editors: none yet (malmen train FILE --model {model.name})")
    print_table(("", editor["id"], editor["created_at"], _scores(editor["scores"])) for editor in shown["editors"])


def _origin(shown: dict[str, Any]) -> str:
    origin = shown["origin"]
    return "-" if origin is None else f"{origin.get('repo')} at {str(origin.get('revision'))[:10]}"


def _scores(scores: dict[str, Any]) -> str:
    """Held-out ES/GS/LS at the largest number of facts that was validated."""
    per_size = scores.get("scores", {})
    if not per_size:
        return ""
    size = max(per_size, key=int)
    return f"at {size} facts ES/GS/LS " + " / ".join(percent(per_size[size].get(key)) for key in ("ES", "GS", "LS"))
