"""The threads of the gRPC server: every call runs once, its end is told once, and no fault costs a thread."""

import threading

from spoke_agent.server.grpc.threads import Threads


def test_every_call_runs_and_its_end_is_told_once():
    threads, told, over = Threads(4, name="t"), [], threading.Semaphore(0)
    for number in range(500):
        task = threads.submit(lambda given, *, more: None, number, more=1)
        task.add_done_callback(lambda _, n=number: (told.append(n), over.release()))
    for _ in range(500):
        assert over.acquire(timeout=10)
    assert sorted(told) == list(range(500))
    threads.close()


def test_who_asks_after_the_end_is_told_at_once():
    threads, over, told = Threads(1, name="t"), threading.Event(), []
    task = threads.submit(over.set)
    assert over.wait(10)
    threads.submit(lambda: None)
    while not task._over:
        pass
    task.add_done_callback(told.append)
    assert told == [task]
    threads.close()


def test_a_fault_costs_no_thread(caplog):
    threads, over, told = Threads(1, name="t"), threading.Event(), []
    task = threads.submit(lambda: 1 / 0)
    task.add_done_callback(told.append)
    threads.submit(over.set)
    assert over.wait(10)
    assert told == [task]
    assert "call_fault" in caplog.text
    threads.close()


def test_closed_threads_do_what_is_queued_and_end():
    threads, done = Threads(2, name="t"), []
    for number in range(50):
        threads.submit(done.append, number)
    threads.close()
    for thread in threads._threads:
        thread.join(10)
        assert not thread.is_alive()
    assert sorted(done) == list(range(50))
