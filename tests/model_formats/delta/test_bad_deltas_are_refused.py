"""Whatever a delta says, a spoke ends with the signed file or with nothing, and in bounded memory."""

import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from model_formats.core.types import digest_of, digest_of_file
from model_formats.delta import DeltaInvalid, DeltaLimits, apply
from model_formats.delta.encode import encode
from model_formats.delta.format import CHUNK, HEADER, LENGTH, MAGIC, pack_numbers, zigzag
from tests.samples.onnx_files import base_tensors, finetuned, write_onnx

BASE = bytes(range(256)) * 4


@pytest.fixture
def refused(tmp_path):
    """Apply bytes as a delta to BASE; they must be refused with this text, and nothing may be left."""

    def check(data, said):
        (tmp_path / "base").write_bytes(BASE)
        (tmp_path / "delta").write_bytes(data)
        with pytest.raises(DeltaInvalid, match=said):
            apply(tmp_path / "base", tmp_path / "delta", tmp_path / "out", digest_of(b""))
        assert {p.name for p in tmp_path.iterdir()} == {"base", "delta"}

    return check


def header(target=100, base=1024, version=1):
    return HEADER.pack(MAGIC, version, target, base)


def segment(side, literals=b"", residuals=b"", words=b""):
    parts = [zstd.compress(pack_numbers(side)), literals and zstd.compress(literals), residuals and zstd.compress(residuals)]
    body = b"".join(LENGTH.pack(len(p)) + p for p in parts) + words
    return CHUNK.pack(b"S", len(body)) + body


COPY, BYTES, GRID, LITERAL = range(4)

BAD = {
    "empty": (b"", "cut off"),
    "not a delta": (b"x" * 100, "not a delta"),
    "newer version": (header(version=9), "not a delta"),
    "claims 10 GB more than is allowed": (header(target=10 << 40), "claims"),
    "claims 10 GB and gives nothing": (header(target=10 << 30) + CHUNK.pack(b"E", 0), "missing at its end"),
    "other base": (header(base=7), "made for a base of 7"),
    "no end": (header(), "cut off"),
    "huge chunk": (header() + CHUNK.pack(b"S", 1 << 31), "a chunk of"),
    "unknown chunk": (header() + CHUNK.pack(b"X", 0), "unknown chunk"),
    "copy beyond the base": (header() + segment([0, 0, COPY, 100, zigzag(1000)]), "outside the base"),
    "copy before the base": (header() + segment([0, 0, COPY, 100, zigzag(-5)]), "outside the base"),
    "more than was claimed": (header(target=10) + segment([0, 0, COPY, 100, 0]), "too long"),
    "a segment of 100 MB": (header(target=1 << 30) + segment([0, 0, LITERAL, 100 << 20]), "too long"),
    "unknown piece": (header() + segment([0, 0, 9, 100, 0]), "unknown kind"),
    "empty piece": (header() + segment([0, 0, COPY, 0, 0]), "empty"),
    "integers of 3 bytes": (header() + segment([0, 0, BYTES, 99, 0, 3]), "integers of 3 bytes"),
    "rows of nothing": (header() + segment([0, 0, GRID, 100, 0, 0]), "rows of 0"),
    "a class that does not exist": (header() + segment([0, 0, GRID, 100, 0, 100, 77, 0]), "does not exist"),
    "a grid without a model": (header() + segment([0, 0, GRID, 100, 0, 100, 5, 0]), "without a model"),
    "literals too few": (header() + segment([0, 0, LITERAL, 100], b"x" * 50), "too few"),
    "literals too many": (header() + segment([0, 0, LITERAL, 100], b"x" * 101), "more than the 100"),
    "a zstd bomb": (header() + segment([0, 0, LITERAL, 100], bytes(50 << 20)), "more than the 100"),
    "not zstd": (header() + CHUNK.pack(b"S", 9) + LENGTH.pack(5) + b"abcde", "damaged"),
    "prefix outside the base": (header() + segment([1000, 1000, LITERAL, 1], b"x"), "outside the base"),
    "a giant prefix": (header() + segment([0, 1 << 40, LITERAL, 1], b"x"), "outside the base"),
    "lanes without states": (header() + CHUNK.pack(b"M", 6) + struct.pack("<HI", 16, 0), "16 lanes"),
    "no lanes": (header() + CHUNK.pack(b"M", 6) + struct.pack("<HI", 0, 0), "0 lanes"),
    "something follows": (header(target=0) + CHUNK.pack(b"E", 0) + b"x", "follows"),
}


@pytest.mark.parametrize(("data", "said"), BAD.values(), ids=BAD.keys())
def test_it_is_refused_and_leaves_nothing(refused, data, said):
    refused(data, said)


def tables(*rows):
    numbers = [n for row in rows for n in row] + [0] * (32 - len(rows))
    packed = zstd.compress(pack_numbers(numbers))
    body = struct.pack("<HI", 1, len(packed)) + packed + struct.pack("<I", 1 << 16)
    return CHUNK.pack(b"M", len(body)) + body


def test_a_table_that_does_not_add_up(refused):
    refused(header() + tables([1, 0, 4095]), "does not add up")


def test_a_coder_that_runs_out_of_words(refused):
    grid = segment([0, 0, GRID, 100, 0, 100, 1, 0])
    refused(header() + tables([0], [2, 0, 1, 1, 4095]) + grid, "ends early")


def test_a_coder_with_words_left_over(refused):
    grid = segment([0, 0, GRID, 100, 0, 100, 1, 0], words=b"abcd")
    refused(header() + tables([0], [1, 0, 4096]) + grid, "left over")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    base = write_onnx(folder / "a.onnx", base_tensors())
    target = write_onnx(folder / "b.onnx", finetuned(base_tensors()), note="other")
    encode(base, target, folder / "delta")
    return folder, base, digest_of_file(target)


@settings(max_examples=150)
@given(st.data())
def test_no_damage_gets_through(good, data):
    folder, base, expected = good
    delta = bytearray((folder / "delta").read_bytes())
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(delta) - 1))
        delta[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del delta[data.draw(st.integers(0, len(delta) - 1)) :]
    (folder / "bad").write_bytes(delta)
    out = folder / "out"
    try:
        apply(base, folder / "bad", out, expected)
    except DeltaInvalid:
        assert not out.exists()
    else:  # a bit that means nothing: the file is the signed one all the same
        assert digest_of_file(out) == expected
        out.unlink()


def test_a_swapped_base_of_the_same_size_is_noticed(good):
    folder, base, expected = good
    other = write_onnx(folder / "c.onnx", base_tensors(7))
    assert other.stat().st_size == base.stat().st_size
    with pytest.raises(DeltaInvalid, match="a wrong base, or damage"):
        apply(other, folder / "delta", folder / "out", expected)
    assert not list(folder.glob(".*"))


def test_an_output_beyond_the_limit_is_refused_before_any_work(good):
    folder, base, expected = good
    with pytest.raises(DeltaInvalid, match="claims"):
        apply(base, folder / "delta", folder / "out", expected, DeltaLimits(output=1000))


RUN = """
import sys
from pathlib import Path
from model_formats.delta import apply
from model_formats.core.types import digest_of_file
def peak():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
before = peak()
folder = Path(sys.argv[1])
apply(folder / "a", folder / "d", folder / "out", sys.argv[2])
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_file(tmp_path):
    noise, grown = np.random.default_rng(0), []
    for rows in (20_000, 80_000):
        tensors = {"w": noise.integers(-90, 90, (rows, 512), dtype=np.int8)}
        write_onnx(tmp_path / "a", tensors)
        write_onnx(tmp_path / "b", finetuned(tensors, rate=0.01))
        encode(tmp_path / "a", tmp_path / "b", tmp_path / "d")
        digest = digest_of_file(tmp_path / "b")
        run = [sys.executable, "-c", RUN, str(tmp_path), digest]
        done = subprocess.run(run, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": "."})
        grown.append(int(done.stdout))
        (tmp_path / "out").unlink()
    assert grown[1] < 60_000
    assert grown[1] - grown[0] < 10_000
