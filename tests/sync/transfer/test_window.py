"""The receiver's rules: what is asked for, when, and when again. And the bitmap that carries it."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sync.transfer.bitmap import MAX_BITS, decode, encode
from sync.transfer.window import InFlightWindow


@given(st.sets(st.integers(0, MAX_BITS - 1), max_size=300))
def test_a_bitmap_round_trips(blocks: set[int]) -> None:
    start, text = encode(blocks)
    assert decode(start, text, blocks=MAX_BITS, limit=len(blocks) + 1) == sorted(blocks)


def test_a_bitmap_of_the_largest_span_fits_into_a_want() -> None:
    start, text = encode([7, 7 + MAX_BITS - 1, 7 + MAX_BITS])
    assert len(text) <= 24_000
    assert decode(start, text, blocks=10**9, limit=9) == [7, 7 + MAX_BITS - 1]


def test_a_bitmap_names_no_block_beyond_the_end_and_no_more_than_the_limit() -> None:
    start, text = encode(range(10, 30))
    assert decode(start, text, blocks=20, limit=99) == list(range(10, 20))
    assert decode(start, text, blocks=99, limit=3) == [10, 11, 12]


@pytest.mark.parametrize("text", ["!", "AAA", "ÄÄÄÄ"])
def test_a_bitmap_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        decode(0, text, blocks=8, limit=8)


def test_the_first_want_asks_for_a_window_and_no_more() -> None:
    window = InFlightWindow(range(100), 100, first=8)
    assert window.due() == list(range(8))
    assert window.due() == []


def test_more_is_asked_when_half_of_the_window_has_arrived() -> None:
    window = InFlightWindow(range(100), 100, first=8)
    window.due()
    for block in range(3):
        window.arrived(block)
    assert window.due() == []
    window.arrived(3)
    assert window.due() == [8, 9, 10, 11]


def test_what_others_asked_for_needs_no_asking() -> None:
    window = InFlightWindow(range(20), 20, first=8)
    for block in range(4, 12):
        window.arrived(block)
    assert window.due() == list(range(12, 20)), "on with the flow"
    for block in range(12, 16):
        window.arrived(block)
    assert window.due() == [0, 1, 2, 3], "what went by comes last"


def test_a_block_that_was_overtaken_is_asked_for_again() -> None:
    window = InFlightWindow(range(100), 100, first=4, largest=4)
    window.due()
    for block in (0, 1, 3):  # 2 is lost
        window.arrived(block)
    assert window.due() == [4, 5, 6]
    window.arrived(4)
    assert window.due() == [2, 7]


def test_the_window_grows_when_the_line_ran_dry() -> None:
    window = InFlightWindow(range(1000), 1000, first=4, largest=16)
    sizes = []
    for _ in range(6):
        asked = window.due()
        sizes.append(len(asked))
        for block in asked:
            window.arrived(block)
    assert sizes == [4, 4, 8, 16, 16, 16]


def test_asking_again_names_what_was_on_the_way() -> None:
    window = InFlightWindow(range(100), 100, first=8)
    asked = window.due()
    window.arrived(0)
    window.ask_again()
    assert window.due() == asked[1:5]


@settings(max_examples=60)
@given(st.integers(1, 300), st.integers(0, 2**32), st.floats(0, 0.5), st.floats(0, 0.3))
def test_every_block_arrives_whatever_is_lost_doubled_or_late(blocks: int, seed: int, loss: float, late: float) -> None:
    rng = random.Random(seed)
    window = InFlightWindow(range(blocks), blocks)
    line: list[int] = []
    asked = 0
    while not window.done:
        due = window.due()
        asked += len(due)
        line += [b for b in due if rng.random() >= loss]
        if not line:
            window.ask_again()
            continue
        block = line.pop(0)
        if rng.random() < late:
            line.append(block)
        else:
            window.arrived(block)
    assert window.due() == []
    assert asked <= blocks / (1 - loss) * 2 + 200


def test_what_another_asks_for_is_left_to_it_and_asked_for_again_when_it_does_not_come() -> None:
    window = InFlightWindow(range(100), 100, first=8)
    window.asked_by_another(range(8))
    assert not window.wants_more
    assert window.due() == []
    window.ask_again()
    assert window.due()[0] == 0
