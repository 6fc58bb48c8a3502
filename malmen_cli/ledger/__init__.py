"""The ledger: workspaces, models, entries, objects, the fold of active facts, transactions, verification. No torch."""

from malmen_cli.ledger import store
from malmen_cli.ledger.active_set import (
    NOTHING_ACTIVE,
    Additions,
    EntryFacts,
    FactRef,
    active_digest,
    active_facts,
    remaining,
    superseded_by,
)
from malmen_cli.ledger.database import Ledger, create_workspace
from malmen_cli.ledger.objects import ObjectStore
from malmen_cli.ledger.records import (
    EditorRecord,
    Entry,
    EntryDraft,
    ModelRecord,
    NewRows,
    ParameterDelta,
    RowPack,
    RowSlice,
    RowSpan,
)
from malmen_cli.ledger.registration import (
    Registration,
    add_editor,
    check_editor,
    editor_digest,
    ensure_base_objects,
    register_model,
)
from malmen_cli.ledger.sidecar import warning_about
from malmen_cli.ledger.transactions import Settlement, commit_entry, revert_from_objects, settle, writing
from malmen_cli.ledger.verify import Problem, Verification, verify_ledger
from malmen_cli.ledger.workspace import Workspace, find_workspace

__all__ = [
    "NOTHING_ACTIVE",
    "Additions",
    "EditorRecord",
    "Entry",
    "EntryDraft",
    "EntryFacts",
    "FactRef",
    "Ledger",
    "ModelRecord",
    "NewRows",
    "ObjectStore",
    "ParameterDelta",
    "Problem",
    "Registration",
    "RowPack",
    "RowSlice",
    "RowSpan",
    "Settlement",
    "Verification",
    "Workspace",
    "active_digest",
    "active_facts",
    "add_editor",
    "check_editor",
    "commit_entry",
    "create_workspace",
    "editor_digest",
    "ensure_base_objects",
    "find_workspace",
    "register_model",
    "remaining",
    "revert_from_objects",
    "settle",
    "store",
    "superseded_by",
    "verify_ledger",
    "warning_about",
    "writing",
]
