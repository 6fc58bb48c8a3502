"""Evaluations, with what each fact's prompts were answered. Refused where a seal is broken: it would be made anew."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from malmen_cli.ledger import seals

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _require_seals()
    op.create_table(
        "evaluations",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("model_id", sa.Integer, nullable=False),
        sa.Column("entry_id", sa.Text),
        sa.Column("editor_id", sa.Text),
        sa.Column("source", sa.Text),
        sa.Column("facts_digest", sa.Text, nullable=False),
        sa.Column("facts", sa.Integer, nullable=False),
        sa.Column("results_digest", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("command", sa.Text, nullable=False),
        sa.Column("details", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_evaluations"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_evaluations_model_id"),
        sa.ForeignKeyConstraint(["entry_id"], ["entries.id"], name="fk_evaluations_entry_id"),
    )
    op.create_table(
        "evaluation_results",
        sa.Column("evaluation_id", sa.Text, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("fact_digest", sa.Text, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("evaluation_id", "position", name="pk_evaluation_results"),
        sa.ForeignKeyConstraint(
            ["evaluation_id"], ["evaluations.id"], name="fk_evaluation_results_evaluation_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_evaluation_results_fact_digest", "evaluation_results", ["fact_digest"])


def downgrade() -> None:
    _require_seals()
    op.drop_table("evaluation_results")
    op.drop_table("evaluations")


def _require_seals() -> None:
    seals.require_sound(op.get_bind().connection.driver_connection)
