import pytest

from spoke_agent.update.journal import Journal, JournalDamaged
from spoke_agent.update.state_machine import Event
from spoke_agent.update.update import Timer, fresh
from sync.core.clock import ManualClock
from sync.core.types import State
from sync.protocol.messages import DesiredModel

NOW = Timer(ManualClock().now(), 0.0, "boot")
DESIRED = DesiredModel(model="digits", version=1, index="sha256:" + "a" * 64)


def moved(journal, model="digits", event=Event.OFFERED):
    update = fresh(DESIRED.replace(model=model), 1, NOW)
    journal.save(update, previous=State.IDLE, event=event)
    return update


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.db"


def test_an_update_comes_back_as_it_was(path):
    saved = moved(Journal(path))
    assert Journal(path).update("digits") == saved


def test_sequences_never_repeat_even_when_all_reports_are_gone(path):
    journal = Journal(path)
    moved(journal)
    (first,) = journal.drafts()
    journal.seal(first.sequence, b"one")
    journal.acknowledge([first.sequence])
    journal.forget("digits")
    journal._db.execute("DELETE FROM reports")
    journal.close()
    again = Journal(path)
    moved(again)
    assert again.drafts()[0].sequence == first.sequence + 1


def test_acknowledged_reports_go_but_each_models_last_stays(path):
    journal = Journal(path)
    for model in ("digits", "digits", "letters"):
        moved(journal, model)
    for draft in journal.drafts():
        journal.seal(draft.sequence, b"x")
    journal.acknowledge([r.sequence for r in journal.unacknowledged()])
    assert journal.unacknowledged() == []
    assert [(r.model, r.sequence) for r in journal.latest()] == [("digits", 2), ("letters", 3)]


def test_it_is_private_and_written_through(path):
    journal = Journal(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert journal._db.journal_mode == "wal"
    assert journal._db.execute("PRAGMA synchronous").fetchone()[0] == 2


def test_a_file_that_is_no_database_is_named(path):
    path.write_bytes(b"not a database, but long enough to look" * 100)
    with pytest.raises(JournalDamaged, match=r"journal\.db"):
        Journal(path)


def test_history_tells_the_newest_first_and_counts_on(path):
    journal = Journal(path)
    moved(journal)
    moved(journal, "letters")
    assert [entry.model for entry in journal.history()] == ["letters", "digits"]
    assert [entry.model for entry in journal.since(1)] == ["letters"]
    assert [journal.next_number("receipts") for _ in range(3)] == [1, 2, 3]


def test_a_clean_stop_is_told_from_a_crash(path):
    journal = Journal(path)
    assert journal.mark_running()
    assert not Journal(path).mark_running()
    journal.mark_stopped()
    assert Journal(path).mark_running()
