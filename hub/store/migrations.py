"""Schema steps. A new database is made whole and stamped; an older one is walked up, one step at a time, in one transaction.

A step is never changed once released. `STEPS[n]` leads from schema n to n + 1.
"""

from collections.abc import Callable

from sqlalchemy import Connection, insert, inspect, select, update

from hub.store.tables import facts, metadata, questions

__all__ = ["SCHEMA", "STEPS", "migrate"]


def _add_questions(connection: Connection) -> None:
    questions.create(connection)


STEPS: dict[int, Callable[[Connection], None]] = {1: _add_questions}
SCHEMA = 1 + len(STEPS)


def migrate(connection: Connection) -> int:
    """Bring the schema to SCHEMA; returns where it was (0: new). Raises ValueError when it is newer than this program."""
    if not inspect(connection).has_table(facts.name):
        metadata.create_all(connection)
        connection.execute(insert(facts).values(key="schema", value=str(SCHEMA)))
        return 0
    found = int(connection.execute(select(facts.c.value).where(facts.c.key == "schema")).scalar_one())
    if found > SCHEMA:
        raise ValueError(f"the database has schema {found}, this program knows {SCHEMA}")
    for number in range(found, SCHEMA):
        STEPS[number](connection)
    connection.execute(update(facts).where(facts.c.key == "schema").values(value=str(SCHEMA)))
    return found
