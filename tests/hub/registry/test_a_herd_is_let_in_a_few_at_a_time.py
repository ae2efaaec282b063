import contextlib
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from hub.registry.admission_queue import LONGEST_WAIT_S, AdmissionQueue, TooManyDownloads
from sync.core.clock import ManualClock
from sync.store import BLOCK_SIZE, MemoryStore
from sync.transfer import TransferCancelled, TransferStalled
from sync.transfer.fetch import fetch_blob


class Counted(AdmissionQueue):
    """Says how many places were ever taken at once."""

    most = 0

    def lively(self, send):
        self.most = max(self.most, sum(zone.taken for zone in self._zones.values()))
        return super().lively(send)


def by_header(request, _repository, _action):
    request.state.zone, request.state.caller = request.headers.get("x-zone", ""), request.headers.get("x-caller", "someone")


def fetch(url, digest, size, caller, **options):
    with httpx.Client(trust_env=False, timeout=20, headers={"x-caller": caller}) as client:
        return fetch_blob(client, f"{url}/v2/digits/blobs/{digest}", digest, size, MemoryStore(), **options)


def taken(admission):
    stack = contextlib.ExitStack()
    stack.enter_context(admission.place("eu", "in"))
    return stack


def test_forty_spokes_and_eight_places_all_come_through_and_never_more_than_eight_at_once(serve, store):
    data, admission = os.urandom(4 * BLOCK_SIZE), Counted(8)
    digest, url = store.put_blob("digits", data), serve(store, by_header, admission)
    with ThreadPoolExecutor(40) as herd:
        got = list(herd.map(lambda i: fetch(url, digest, len(data), f"spoke-{i}"), range(40)))
    assert got == [len(data)] * 40
    assert 2 <= admission.most <= 8
    assert not any(zone.taken or zone.waiting for zone in admission._zones.values()), "nobody is left waiting"


def test_who_is_sent_away_hears_when_to_come_again(serve, store):
    digest, admission = store.put_blob("digits", b"weights"), AdmissionQueue(1)
    url = f"{serve(store, by_header, admission)}/v2/digits/blobs/{digest}"
    with admission.place("eu", "another"):
        answer = httpx.get(url, headers={"x-zone": "eu"})
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["Retry-After"]) <= LONGEST_WAIT_S * 1.25
        assert answer.json()["errors"][0]["code"] == "TOOMANYREQUESTS"
        assert httpx.head(url, headers={"x-zone": "eu"}).status_code == 200, "a question takes no place"
        assert httpx.get(url, headers={"x-zone": "me"}).content == b"weights", "zones do not crowd each other out"
    assert httpx.get(url, headers={"x-zone": "eu"}).content == b"weights"


def test_a_spoke_that_takes_nothing_loses_its_place(serve, store):
    data, admission = os.urandom(32 << 20), AdmissionQueue(1, stall_s=0.3)
    digest = store.put_blob("digits", data)
    url = httpx.URL(f"{serve(store, by_header, admission)}/v2/digits/blobs/{digest}")
    with socket.create_connection((url.host, url.port)) as dead:
        dead.sendall(f"GET {url.path} HTTP/1.1\r\nHost: hub\r\n\r\n".encode())
        dead.recv(1)
        assert httpx.get(url).status_code == 429
        deadline = time.monotonic() + 10
        while admission._zones[""].taken:
            assert time.monotonic() < deadline, "it still holds its place"
            time.sleep(0.05)
        assert httpx.get(url).content == data


def test_who_came_first_comes_first_and_a_crowd_is_spread_over_the_time_it_takes():
    clock = ManualClock()
    admission = AdmissionQueue(10, clock=clock)
    told = {}
    inside = [taken(admission) for _ in range(10)]
    for i in range(1000):
        with pytest.raises(TooManyDownloads) as refused, admission.place("eu", f"spoke-{i}"):
            pass
        told[i] = refused.value.retry_after
    assert max(told[i] for i in range(50)) < min(told[i] for i in range(900, 1000))
    assert 75 <= max(told.values()) <= 126, "a thousand, ten at a time, a second each"
    with pytest.raises(TooManyDownloads) as refused, admission.place("eu", "spoke-3"):
        pass
    assert refused.value.retry_after <= 2, "it kept its turn"
    for one in inside:
        one.close()


def test_who_does_not_come_back_is_forgotten():
    clock = ManualClock()
    admission = AdmissionQueue(1, clock=clock)
    inside = taken(admission)
    for caller in ("gone", "gone too"):
        with pytest.raises(TooManyDownloads), admission.place("eu", caller):
            pass
    clock.advance(LONGEST_WAIT_S)
    with pytest.raises(TooManyDownloads), admission.place("eu", "here"):
        pass
    assert list(admission._zones["eu"].waiting) == ["here"]
    inside.close()


def test_a_spoke_that_waits_for_a_place_can_be_cancelled_and_gives_up_in_the_end(serve, store):
    digest, admission = store.put_blob("digits", b"weights"), AdmissionQueue(1)
    url, cancel = serve(store, by_header, admission), threading.Event()
    with admission.place("", "another"):
        threading.Timer(0.2, cancel.set).start()
        begin = time.monotonic()
        with pytest.raises(TransferCancelled):
            fetch(url, digest, 7, "me", cancel=cancel)
        assert time.monotonic() - begin < 1.0
        clock = ManualClock()
        threading.Timer(0.2, clock.advance, [4000]).start()
        with pytest.raises(TransferStalled, match="no place"):
            fetch(url, digest, 7, "me", clock=clock)
