"""A range coder that NumPy can run: interleaved rANS over many lanes, with a static table per context.

Lane j codes symbols j, j + lanes, j + 2 lanes, ...; one NumPy step moves all lanes, so a million symbols take a few hundred
steps. The context of every symbol must be known before it is decoded, that is, follow from the base file and the delta's
parameters.

Source: J. Duda, "Asymmetric numeral systems", arXiv:1311.2540; interleaving: F. Giesen, arXiv:1402.3392. States are 32 bits
wide and renormalized by 16-bit words; probabilities are in units of 1/4096.
"""

from collections.abc import Sequence

import numpy as np

from model_formats.core.runtime import Array
from model_formats.delta.format import DeltaInvalid

__all__ = ["BITS", "MAX_LANES", "Decoder", "encode", "frequencies", "lanes_for", "table_of"]

BITS = 12
TOTAL = 1 << BITS
LOW = 1 << 16
"""States live in [LOW, 2^32)."""
MAX_LANES = 2048


def lanes_for(symbols: int) -> int:
    """Lanes for that many symbols: each costs about 3 bytes, and each step of NumPy some microseconds."""
    lanes = 16
    while lanes < MAX_LANES and lanes * 1024 < symbols:
        lanes *= 2
    return lanes


def frequencies(counts: Array) -> Array:
    """Counts [contexts, 256] -> frequencies that sum to 4096 in each used context; whatever occurs gets at least 1."""
    out = np.zeros(counts.shape, np.int64)
    for context in np.flatnonzero(counts.sum(1)):
        row = counts[context]
        # A symbol that occurs must have a frequency, or it could not be coded at all.
        scaled = np.maximum((row * TOTAL) // row.sum(), row > 0)
        while (over := int(scaled.sum()) - TOTAL) > 0:
            best = int(np.argmax(scaled))
            scaled[best] -= min(over, int(scaled[best]) // 2)
        scaled[int(np.argmax(row))] += TOTAL - int(scaled.sum())
        out[context] = scaled
    return out


def table_of(freqs: Array) -> Array:
    """Decoding table [contexts * 4096] uint32: symbol, frequency - 1 and slot - start packed by slot. Raises DeltaInvalid."""
    sums = freqs.sum(1)
    if freqs.min(initial=0) < 0 or not np.isin(sums, (0, TOTAL)).all():
        raise DeltaInvalid("delta: a probability table does not add up")
    # All that a step needs in one 32-bit word, so that one lookup serves a lane: symbol 8 bits, frequency 12, offset 12.
    table = np.zeros((len(freqs), TOTAL), np.uint32)
    for context in np.flatnonzero(sums):
        symbols = np.flatnonzero(freqs[context])
        counts = freqs[context][symbols]
        starts = np.repeat(np.cumsum(counts) - counts, counts)
        offsets = np.arange(TOTAL) - starts
        table[context] = np.repeat(symbols, counts) | (np.repeat(counts, counts) - 1) << 8 | offsets << 20
    return table.reshape(-1)


def encode(segments: Sequence[tuple[Array, Array]], freqs: Array, lanes: int) -> tuple[Array, list[Array]]:
    """Code segments of (symbols uint8, contexts int), each a multiple of `lanes` long.

    Returns the states to start decoding from, and the 16-bit words of each segment.
    """
    starts = np.cumsum(freqs, 1) - freqs
    flat_freqs, flat_starts = freqs.reshape(-1).astype(np.uint64), starts.reshape(-1).astype(np.uint64)
    states = np.full(lanes, LOW, np.uint64)
    words: list[Array] = []
    # rANS is a stack: what is coded last is decoded first.
    for symbols, contexts in reversed(segments):
        index = contexts.astype(np.int64) * 256 + symbols
        pieces = []
        for step in range(len(symbols) // lanes - 1, -1, -1):
            at = index[step * lanes : (step + 1) * lanes]
            freq = flat_freqs[at]
            full = states >= freq << np.uint64(32 - BITS)
            pieces.append((states[full] & np.uint64(0xFFFF)).astype("<u2"))
            states[full] >>= np.uint64(16)
            quotient = states // freq
            states = (quotient << np.uint64(BITS)) + (states - quotient * freq) + flat_starts[at]
        words.append(np.concatenate(pieces[::-1]) if pieces else np.zeros(0, "<u2"))
    return states.astype("<u4"), words[::-1]


class Decoder:
    """Undoes `encode`, segment by segment."""

    def __init__(self, table: Array, states: Array) -> None:
        self._table, self._lanes = table, len(states)
        self._x = states.astype(np.uint32)
        self._t, self._index = np.empty(self._lanes, np.uint32), np.empty(self._lanes, np.int64)

    def decode(self, contexts: Array, words: Array) -> Array:
        """The symbols (uint8) of a segment; `contexts` int32 << BITS, a multiple of the lanes long. Raises DeltaInvalid."""
        lanes, at = self._lanes, 0
        out = np.empty(len(contexts), np.uint8)
        for start in range(0, len(contexts), lanes):
            at += self._step(contexts[start : start + lanes], words[at:], out[start : start + lanes])
        if at != len(words):
            raise DeltaInvalid(f"delta: {len(words) - at} words left over in a segment")
        return out

    def _step(self, contexts: Array, words: Array, out: Array) -> int:
        x, t, index = self._x, self._t, self._index
        # In place throughout: a new array for each operation would cost more than the arithmetic.
        np.bitwise_and(x, TOTAL - 1, out=t)
        np.add(contexts, t, out=index)
        np.take(self._table, index, out=t, mode="clip")
        out[:] = t  # the low byte is the symbol
        np.right_shift(x, BITS, out=x)
        freq = t >> 8
        freq &= TOTAL - 1
        freq += 1
        x *= freq
        t >>= 20
        x += t
        # One 16-bit word is always enough: a state of at least 2^16 is still at least 2^4 after a step, so 2^20 after 16 more
        # bits.
        (low,) = np.nonzero(x < LOW)
        if len(low) > len(words):
            raise DeltaInvalid("delta: a segment ends early")
        x[low] = x[low] << 16 | words[: len(low)]
        return len(low)
