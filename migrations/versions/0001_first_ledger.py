"""The first ledger: models, editors, facts, entries, parameter deltas, stored rows."""

from __future__ import annotations

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

FIGURES = (
    "norm",
    "relative_norm",
    "largest_change",
    "effective_rank",
    "share_moved",
    "rounding_loss",
    "ridge",
    "step_size",
    "preserved_strength",
)


def upgrade() -> None:
    settings = op.create_table(
        "settings",
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_settings"),
    )
    op.bulk_insert(settings, [{"key": "ledger_id", "value": uuid.uuid4().hex}])
    op.create_table(
        "models",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("base_digest", sa.Text, nullable=False),
        sa.Column("manifest", sa.Text, nullable=False),
        sa.Column("architecture", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
        sa.UniqueConstraint("name", name="uq_models_name"),
        sa.UniqueConstraint("path", name="uq_models_path"),
    )
    op.create_table(
        "editors",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("model_id", sa.Integer, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("per_fact", sa.Boolean, nullable=False),
        sa.Column("config", sa.Text, nullable=False),
        sa.Column("scores", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_editors"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_editors_model_id"),
    )
    op.create_table(
        "facts",
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("edit_digest", sa.Text, nullable=False),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("subject", sa.Text),
        sa.Column("content", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_facts"),
    )
    op.create_table(
        "fact_sets",
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_fact_sets"),
    )
    op.create_table(
        "fact_set_members",
        sa.Column("fact_set_digest", sa.Text, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("fact_digest", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("fact_set_digest", "position", name="pk_fact_set_members"),
        sa.ForeignKeyConstraint(
            ["fact_set_digest"], ["fact_sets.digest"], name="fk_fact_set_members_fact_set_digest", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["fact_digest"], ["facts.digest"], name="fk_fact_set_members_fact_digest"),
    )
    op.create_index("ix_fact_set_members_fact_digest", "fact_set_members", ["fact_digest"])
    op.create_table(
        "entries",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("model_id", sa.Integer, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("parent", sa.Text),
        sa.Column("fact_set_digest", sa.Text),
        sa.Column("target", sa.Text),
        sa.Column("editor_id", sa.Text),
        sa.Column("active_digest", sa.Text, nullable=False),
        sa.Column("source", sa.Text),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("command", sa.Text, nullable=False),
        sa.Column("details", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_entries"),
        sa.UniqueConstraint("model_id", "number", name="uq_entries_model_id"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_entries_model_id"),
        sa.ForeignKeyConstraint(["parent"], ["entries.id"], name="fk_entries_parent"),
        sa.ForeignKeyConstraint(["fact_set_digest"], ["fact_sets.digest"], name="fk_entries_fact_set_digest"),
        sa.ForeignKeyConstraint(["target"], ["entries.id"], name="fk_entries_target"),
        sa.ForeignKeyConstraint(["editor_id"], ["editors.id"], name="fk_entries_editor_id"),
        sa.CheckConstraint("kind IN ('register', 'apply', 'revert', 'rebase')", name=op.f("ck_entries_kind")),
        sa.CheckConstraint("status IN ('pending', 'applied')", name=op.f("ck_entries_status")),
    )
    op.create_index("ix_entries_fact_set_digest", "entries", ["fact_set_digest"])
    op.create_index(
        "ix_entries_pending", "entries", ["model_id"], unique=True, sqlite_where=sa.text("status = 'pending'")
    )
    op.create_table(
        "parameter_deltas",
        sa.Column("entry_id", sa.Text, nullable=False),
        sa.Column("tensor", sa.Text, nullable=False),
        sa.Column("before", sa.Text, nullable=False),
        sa.Column("after", sa.Text, nullable=False),
        *(sa.Column(figure, sa.Float) for figure in FIGURES),
        sa.PrimaryKeyConstraint("entry_id", "tensor", name="pk_parameter_deltas"),
        sa.ForeignKeyConstraint(["entry_id"], ["entries.id"], name="fk_parameter_deltas_entry_id", ondelete="CASCADE"),
    )
    op.create_table(
        "row_packs",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("entry_id", sa.Text, nullable=False),
        sa.Column("editor_id", sa.Text, nullable=False),
        sa.Column("layer", sa.Text, nullable=False),
        sa.Column("object", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_row_packs"),
        sa.UniqueConstraint("entry_id", "layer", name="uq_row_packs_entry_id"),
        sa.ForeignKeyConstraint(["entry_id"], ["entries.id"], name="fk_row_packs_entry_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["editor_id"], ["editors.id"], name="fk_row_packs_editor_id"),
    )
    op.create_table(
        "fact_rows",
        sa.Column("edit_digest", sa.Text, nullable=False),
        sa.Column("pack_id", sa.Integer, nullable=False),
        sa.Column("start", sa.Integer, nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("edit_digest", "pack_id", name="pk_fact_rows"),
        sa.ForeignKeyConstraint(["pack_id"], ["row_packs.id"], name="fk_fact_rows_pack_id", ondelete="CASCADE"),
    )
    op.create_index("ix_fact_rows_pack_id", "fact_rows", ["pack_id"])


def downgrade() -> None:
    for table in (
        "fact_rows",
        "row_packs",
        "parameter_deltas",
        "entries",
        "fact_set_members",
        "fact_sets",
        "facts",
        "editors",
        "models",
        "settings",
    ):
        op.drop_table(table)
