import pytest
from sqlalchemy import create_engine, insert, inspect, text

from hub.store.database import Database, DatabaseDown, DatabaseUnusable
from hub.store.key_values import get_value
from hub.store.migrations import SCHEMA, STEPS
from hub.store.tables import facts, metadata


def test_a_new_database_is_stamped_and_opened_again_unchanged(sqlite_url):
    for _ in range(2):
        found = Database(sqlite_url).open()
        with found.read() as db:
            assert get_value(db, "schema") == str(SCHEMA)
        found.close()


def test_there_is_a_step_for_every_number():
    assert sorted(STEPS) == list(range(1, SCHEMA))


def test_a_database_of_the_first_schema_is_walked_up_to_the_tables_of_now(sqlite_url):
    engine = create_engine(sqlite_url)
    with engine.begin() as db:
        metadata.create_all(db, tables=[t for t in metadata.sorted_tables if t.name != "questions"])
        db.execute(insert(facts).values(key="schema", value="1"))
    engine.dispose()
    found = Database(sqlite_url).open()
    with found.read() as db:
        assert get_value(db, "schema") == str(SCHEMA)
        for table in metadata.sorted_tables:
            assert {c["name"] for c in inspect(db).get_columns(table.name)} == set(table.c.keys()), table.name
    found.close()


def test_a_newer_database_is_refused_and_left_alone(sqlite_url):
    found = Database(sqlite_url).open()
    with found.begin() as db:
        db.execute(text("UPDATE facts SET value = '999' WHERE key = 'schema'"))
    with pytest.raises(DatabaseUnusable, match="schema 999"):
        found.open()
    found.close()


@pytest.mark.parametrize("url", ["nonsense", "postgresql+nodriver://x/y"])
def test_a_wrong_url_is_the_operators(url):
    with pytest.raises(DatabaseUnusable):
        Database(url)


def test_a_database_that_is_away_is_told_from_a_wrong_one(tmp_path):
    with pytest.raises(DatabaseDown):
        Database(f"sqlite:///{tmp_path}/no/such/folder/hub.db").open()
