"""The ledger: workspaces, models, entries, objects, the fold of active facts, transactions, verification. No torch."""

from malmen_cli.checkpoint.digests import short
from malmen_cli.checkpoint.lock import PATIENCE, announce_waiting
from malmen_cli.ledger import store
from malmen_cli.ledger.active_set import (
    NOTHING_ACTIVE,
    Additions,
    EntryFacts,
    FactRef,
    Fate,
    active_digest,
    active_facts,
    fates,
    putting_back,
    remaining,
    reverters,
    superseded_by,
)
from malmen_cli.ledger.collection import SCOPES, Item, Scope, collect, collectable
from malmen_cli.ledger.database import Ledger, create_workspace
from malmen_cli.ledger.holdings import Holding, holding
from malmen_cli.ledger.objects import ObjectStore
from malmen_cli.ledger.quiet import reading, unmoved, verify_when_quiet
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
from malmen_cli.ledger.recovery import Recovery, recover
from malmen_cli.ledger.registration import (
    Registration,
    add_editor,
    check_editor,
    editor_digest,
    editor_digest_of,
    ensure_base_objects,
    register_model,
    renew_editor,
)
from malmen_cli.ledger.relocation import move_model
from malmen_cli.ledger.sidecar import warning_about
from malmen_cli.ledger.space import require_room
from malmen_cli.ledger.splits import Split, add_split, all_splits, remove_split, split_named
from malmen_cli.ledger.transactions import (
    Settlement,
    commit_entry,
    require_head,
    require_there,
    require_unlocked,
    revert_from_objects,
    settle,
    writing,
)
from malmen_cli.ledger.verify import Problem, Verification, verify_ledger
from malmen_cli.ledger.workspace import Workspace, find_workspace

__all__ = [
    "NOTHING_ACTIVE",
    "PATIENCE",
    "SCOPES",
    "Additions",
    "EditorRecord",
    "Entry",
    "EntryDraft",
    "EntryFacts",
    "FactRef",
    "Fate",
    "Holding",
    "Item",
    "Ledger",
    "ModelRecord",
    "NewRows",
    "ObjectStore",
    "ParameterDelta",
    "Problem",
    "Recovery",
    "Registration",
    "RowPack",
    "RowSlice",
    "RowSpan",
    "Scope",
    "Settlement",
    "Split",
    "Verification",
    "Workspace",
    "active_digest",
    "active_facts",
    "add_editor",
    "add_split",
    "all_splits",
    "announce_waiting",
    "check_editor",
    "collect",
    "collectable",
    "commit_entry",
    "create_workspace",
    "editor_digest",
    "editor_digest_of",
    "ensure_base_objects",
    "fates",
    "find_workspace",
    "holding",
    "move_model",
    "putting_back",
    "reading",
    "recover",
    "register_model",
    "remaining",
    "remove_split",
    "renew_editor",
    "require_head",
    "require_room",
    "require_there",
    "require_unlocked",
    "revert_from_objects",
    "reverters",
    "settle",
    "short",
    "split_named",
    "store",
    "superseded_by",
    "unmoved",
    "verify_ledger",
    "verify_when_quiet",
    "warning_about",
    "writing",
]
