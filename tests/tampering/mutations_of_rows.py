"""Mutations of the database's rows and of its schema, made with plain sqlite3 and every guard of SQLite off."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from mutations import Mutation
from tampered_world import TamperedWorld

Row = dict[str, Any]


def change(world: TamperedWorld, *statements: tuple[str, tuple[Any, ...]]) -> None:
    """Run statements as a stranger would. Raises sqlite3.Error where even then SQLite refuses."""
    with closing(sqlite3.connect(world.database)) as db:
        for pragma in ("synchronous = OFF", "foreign_keys = OFF", "ignore_check_constraints = ON"):
            db.execute(f"PRAGMA {pragma}")
        with db:
            for statement, values in statements:
                db.execute(statement, values)


def change_schema(world: TamperedWorld, *statements: str) -> None:
    """The same for the table of the schema itself."""
    with closing(sqlite3.connect(world.database, isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema = ON")
        for statement in statements:
            db.execute(statement)


def located(table: str, row: Row, names: dict[str, str]) -> tuple[str, ...]:
    """Words that name a row: the row's own, or the entry, fact or set that it belongs to."""

    def short(column: str) -> str:
        return str(row[column]).removeprefix("sha256:")[:10]

    found = {
        "facts": lambda: (f"fact {short('digest')}",),
        "fact_sets": lambda: (f"fact set {short('digest')}",),
        "fact_set_members": lambda: (f"fact set {short('fact_set_digest')}",),
        "entries": lambda: (f"entry {short('id')}", f"row {short('id')}", f"table entries, model {row['model_id']}"),
        "parameter_deltas": lambda: (f"entry {short('entry_id')}",),
        "row_packs": lambda: (f"entry {short('entry_id')}", "table row_packs"),
        "fact_rows": lambda: (names[str(row["pack_id"])] if table == "fact_rows" else "",),
        "models": lambda: (f"model {row['name']}", f"models, row {row['id']}", f"models, row {row['name']}"),
        "editors": lambda: (f"editor {row['id']}", f'table editors, row "{row["id"]}"'),
        "splits": lambda: (f'table splits, row "{row["name"]}"',),
        "settings": lambda: (f'table settings, row "{row["key"]}"',),
        "dropped_objects": lambda: ("table dropped_objects",),
        "alembic_version": lambda: ("table alembic_version", "ledger.db was made by", "ledger.db does not hold"),
        "evaluations": lambda: (f"evaluation {short('id')}", f'table evaluations, row "{row["id"]}"'),
        "evaluation_results": lambda: (f"evaluation {short('evaluation_id')}",),
        "seals": lambda: (f"ledger.db {row['name']}", "ledger.db seals"),
    }
    return found[table]()


# Other values for one: changed a little, of another type, nothing, everything's neighbour.
def others(value: Any, column: list[Any], chance: random.Random) -> Iterator[Any]:
    if isinstance(value, str):
        place = chance.randrange(len(value)) if value else 0
        yield from (value + " ", " " + value, "", value.swapcase(), value[:place] + "~" + value[place + 1 :])
        yield from (value.encode(), value[:-1], value + "\0x")
    elif isinstance(value, (int, float)):
        yield from (value + 1, -value - 1, float(value) + 0.5, str(value) + "x", b"\1", 9e999, 2**62)
    else:
        yield from ("x", 0, 1.5, b"", 9e999)
    yield None
    yield from chance.sample(column, min(2, len(column)))


def mutations_of_rows(world: TamperedWorld, chance: random.Random, scale: float) -> Iterator[Mutation]:
    """Every column of every row set to other values; rows deleted, doubled, exchanged; the schema altered."""
    with closing(sqlite3.connect(world.database)) as db:
        db.row_factory = sqlite3.Row
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        content = {
            table: [(row["rowid"], dict(row)) for row in db.execute(f"SELECT rowid AS rowid, * FROM {table}")]
            for table in tables
        }
    world.drop_log()
    names = {str(row["id"]): f"entry {row['entry_id'].removeprefix('sha256:')[:10]}" for _, row in content["row_packs"]}
    for table, rows in content.items():
        found = list(_of_table(world, table, rows, names, chance))
        yield from found if scale >= 1 else chance.sample(found, min(len(found), max(4, round(len(found) * scale))))
    schema = list(_of_schema(world, content))
    yield from schema if scale > 0.1 else chance.sample(schema, 10)


def _of_table(
    world: TamperedWorld, table: str, rows: list[tuple[int, Row]], names: dict[str, str], chance: random.Random
) -> Iterator[Mutation]:
    def mutation(
        what: str,
        row: Row,
        *statements: tuple[str, tuple[Any, ...]],
        number: int = 0,
        new: Row | None = None,
    ) -> Mutation:
        """Located by its name of before or of now: what a row is called may be what was changed."""
        new = row | (new or {})
        where = located(table, row, names) + located(table, new, {str(new.get("pack_id")): "fact_rows"} | names)
        where += (f"table {table}, row {number}:", f"table {table}: row {number} ")
        return Mutation("rows", f"{table}: {what}", lambda: change(world, *statements), (world.database,), where)

    for number, row in rows:
        columns = [column for column in row if column != "rowid"]
        row = {column: row[column] for column in columns}
        for column in columns:
            everywhere = [other[column] for _, other in rows]
            for value in others(row[column], everywhere, chance):
                if type(value) is type(row[column]) and value == row[column]:
                    continue
                statement = (f'UPDATE {table} SET "{column}" = ? WHERE rowid = ?', (value, number))
                what = f"{column} of row {number} from {row[column]!r:.60} to {value!r:.60}"
                yield mutation(what, row, statement, number=number, new={column: value})
        yield mutation(f"row {number} deleted", row, (f"DELETE FROM {table} WHERE rowid = ?", (number,)))
        for column in columns:
            new = row | {column: "sha256:" + "0" * 64 if isinstance(row[column], str) else 99}
            marks = ", ".join("?" * len(columns))
            quoted = ", ".join(f'"{name}"' for name in columns)
            statement = (f"INSERT INTO {table} ({quoted}) VALUES ({marks})", tuple(new.values()))
            what = f"row {number} doubled with another {column}"
            yield mutation(what, row, statement, number=max(rows)[0] + 1, new=new)
    for column in rows[0][1] if rows else ():
        if column != "rowid" and len(rows) > 1:
            for _ in range(min(len(rows), 12)):
                (one, first), (other, second) = chance.sample(rows, 2)
                if first[column] == second[column]:
                    continue
                apart = "-7" if isinstance(first[column], int) else "apart"
                statements = [
                    (f'UPDATE {table} SET "{column}" = ? WHERE rowid = ?', values)
                    for values in ((apart, other), (second[column], one), (first[column], other))
                ]
                yield mutation(f"{column} of rows {one} and {other} exchanged", first, *statements, new=second)
    if rows:
        yield mutation("emptied", rows[0][1], (f"DELETE FROM {table}", ()))


def _of_schema(world: TamperedWorld, content: dict[str, list[tuple[int, Row]]]) -> Iterator[Mutation]:
    def mutation(what: str, *statements: str, by_hand: bool = False) -> Mutation:
        def act() -> None:
            if by_hand:
                change_schema(world, *statements)
            else:
                change(world, *((statement, ()) for statement in statements))

        return Mutation("schema", what, act, (world.database,), ("schema", "ledger.db"))

    with closing(sqlite3.connect(world.database)) as db:
        kept = db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
    world.drop_log()
    for table in content:
        yield mutation(
            f"a trigger on {table}", f"CREATE TRIGGER strange AFTER INSERT ON {table} BEGIN DELETE FROM facts; END"
        )
        yield mutation(f"a view of {table}", f"CREATE VIEW strange AS SELECT * FROM {table}")
        yield mutation(f"an index on {table}", f"CREATE INDEX strange ON {table} (rowid + 1)".replace("rowid + 1", "1"))
        yield mutation(f"a column more in {table}", f"ALTER TABLE {table} ADD COLUMN strange TEXT")
        yield mutation(f"{table} renamed", f"ALTER TABLE {table} RENAME TO strange")
        yield mutation(f"{table} dropped", f"DROP TABLE {table}")
        yield mutation(
            f"{table} a view", f"ALTER TABLE {table} RENAME TO away", f"CREATE VIEW {table} AS SELECT * FROM away"
        )
    yield mutation("a stranger's table", "CREATE TABLE strange (a)")
    yield mutation("a search table", "CREATE VIRTUAL TABLE strange USING fts5(a)")
    yield mutation("statistics", "ANALYZE")
    for kind, name, table, sql in kept:
        if kind == "index" and sql:
            yield mutation(f"index {name} dropped", f"DROP INDEX {name}")
            unique = sql.replace("CREATE UNIQUE INDEX", "CREATE INDEX")
            if unique != sql:
                yield mutation(f"index {name} not unique", f"DROP INDEX {name}", unique)
        elif sql:
            for words, instead in (
                ("NOT NULL", "NULL"), ("CHECK", "CHECK (1 OR 1) /*"), ("ON DELETE CASCADE", ""),
                ("REFERENCES entries", "REFERENCES editors"), ("REFERENCES models", "REFERENCES facts"),
                ("TEXT", "BLOB"), ("FLOAT", "NUMERIC"),
            ):  # fmt: skip
                if words in sql and words != "CHECK":
                    other = sql.replace(words, instead, 1).replace("'", "''")
                    yield mutation(
                        f"{words} of {table} gone",
                        f"UPDATE sqlite_master SET sql = '{other}' WHERE name = '{name}'",
                        by_hand=True,
                    )
    yield mutation(
        "a trigger that says it is a table",
        "CREATE TRIGGER strange AFTER INSERT ON facts BEGIN DELETE FROM splits; END",
        "UPDATE sqlite_master SET type = 'table' WHERE name = 'strange'",
        by_hand=True,
    )
