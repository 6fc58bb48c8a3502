"""The tables, as SQLAlchemy sees them: what migrations/ must arrive at (a test compares) and Alembic compares with.

Times are ISO 8601 in UTC, digests tagged texts, JSON canonical texts. Loaded only where the schema is made or upgraded.
"""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from malmen_cli.ledger.connection import SCHEMA_REVISION
from malmen_cli.ledger.records import FIGURES

__all__ = ["SCHEMA_REVISION", "metadata"]

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Table(
    "settings",  # `ledger_id`: this ledger's own name
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

Table(
    "models",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("base_digest", Text, nullable=False),
    Column("manifest", Text, nullable=False),
    Column("architecture", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    UniqueConstraint("name"),
    UniqueConstraint("path"),
)

Table(
    "editors",
    metadata,
    Column("id", Text, primary_key=True),
    Column("model_id", ForeignKey("models.id"), nullable=False),
    Column("digest", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("per_fact", Boolean, nullable=False),
    Column("config", Text, nullable=False),
    Column("scores", Text, nullable=False),
)

Table(
    "facts",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("edit_digest", Text, nullable=False),
    Column("prompt", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("subject", Text),
    Column("content", Text, nullable=False),  # the fact's canonical JSON
)

Table(
    "fact_sets",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("size", Integer, nullable=False),
)

Table(
    "fact_set_members",
    metadata,
    Column("fact_set_digest", ForeignKey("fact_sets.digest", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("fact_digest", ForeignKey("facts.digest"), nullable=False, index=True),
)

Table(
    "entries",
    metadata,
    Column("id", Text, primary_key=True),
    Column("model_id", ForeignKey("models.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("parent", ForeignKey("entries.id")),
    Column("fact_set_digest", ForeignKey("fact_sets.digest"), index=True),
    Column("target", ForeignKey("entries.id")),
    Column("editor_id", ForeignKey("editors.id")),
    Column("active_digest", Text, nullable=False),
    Column("source", Text),
    Column("created_at", Text, nullable=False),
    Column("command", Text, nullable=False),
    Column("details", Text, nullable=False),
    UniqueConstraint("model_id", "number"),
    CheckConstraint("kind IN ('register', 'apply', 'revert', 'rebase')", name="kind"),
    CheckConstraint("status IN ('pending', 'applied')", name="status"),
    Index("ix_entries_pending", "model_id", unique=True, sqlite_where=text("status = 'pending'")),  # one per model
)

Table(
    "parameter_deltas",
    metadata,
    Column("entry_id", ForeignKey("entries.id", ondelete="CASCADE"), primary_key=True),
    Column("tensor", Text, primary_key=True),
    Column("before", Text, nullable=False),
    Column("after", Text, nullable=False),
    *(Column(figure, Float) for figure in FIGURES),
)

Table(
    "row_packs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("entry_id", ForeignKey("entries.id", ondelete="CASCADE"), nullable=False),
    Column("editor_id", ForeignKey("editors.id"), nullable=False),
    Column("layer", Text, nullable=False),
    Column("object", Text, nullable=False),
    UniqueConstraint("entry_id", "layer"),
)

Table(
    "fact_rows",
    metadata,
    Column("edit_digest", Text, primary_key=True),
    Column("pack_id", ForeignKey("row_packs.id", ondelete="CASCADE"), primary_key=True, index=True),
    Column("start", Integer, nullable=False),
    Column("count", Integer, nullable=False),
)

Table(
    "splits",  # fact files by a name; the facts themselves stay in the file
    metadata,
    Column("name", Text, primary_key=True),
    Column("path", Text, nullable=False),  # absolute
    Column("format", Text),  # None: detected record by record
    Column("on_conflict", Text),  # of contradicting records keep 'first' or 'last'; None: refuse
    Column("digest", Text, nullable=False),  # of the file's bytes when it was added
    Column("facts", Integer, nullable=False),
    Column("added_at", Text, nullable=False),
)

Table(
    "dropped_objects",  # states' tensors that gc has dropped: absent on purpose, the rows give them again
    metadata,
    Column("digest", Text, primary_key=True),
    Column("dropped_at", Text, nullable=False),
)

Table(
    "evaluations",  # what `malmen eval` found; no part of the chain, and no reason to keep an editor
    metadata,
    Column("id", Text, primary_key=True),  # a digest over all else that the row says
    Column("model_id", ForeignKey("models.id"), nullable=False),
    Column("entry_id", ForeignKey("entries.id")),  # None: of a fact file
    Column("editor_id", Text),
    Column("source", Text),  # the file that the facts came from
    Column("facts_digest", Text, nullable=False),  # of the fact set of that file or entry
    Column("facts", Integer, nullable=False),  # how many were scored
    Column("results_digest", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("command", Text, nullable=False),
    Column("details", Text, nullable=False),  # scores, options and versions
)

Table(
    "evaluation_results",
    metadata,
    Column("evaluation_id", ForeignKey("evaluations.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("fact_digest", Text, nullable=False, index=True),
    Column("content", Text, nullable=False),  # a fact's prompts, answers and scores as JSON
)

Table(
    "seals",  # a digest over each part that the chain does not reach; see seals.py
    metadata,
    Column("name", Text, primary_key=True),
    Column("digest", Text, nullable=False),
)
