import pytest
from sqlalchemy import text

from hub.store.database import Database, DatabaseDown, DatabaseUnusable
from hub.store.facts import get_fact
from hub.store.migrations import SCHEMA, STEPS


def test_a_new_database_is_stamped_and_opened_again_unchanged(sqlite_url):
    for _ in range(2):
        found = Database(sqlite_url).open()
        with found.read() as db:
            assert get_fact(db, "schema") == str(SCHEMA)
        found.close()


def test_there_is_a_step_for_every_number():
    assert sorted(STEPS) == list(range(1, SCHEMA))


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
