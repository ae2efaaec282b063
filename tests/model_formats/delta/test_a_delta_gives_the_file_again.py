import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_formats.core.types import digest_of, digest_of_file
from model_formats.delta import apply
from model_formats.delta.encode import encode
from model_formats.delta.planes import difference, restore
from model_formats.delta.rans import Decoder, frequencies, lanes_for, table_of
from model_formats.delta.rans import encode as encode_lanes
from tests.samples.onnx_files import base_tensors, finetuned, write_onnx


def round_trip(folder, base, target, level):
    size = encode(base, target, folder / "delta", level=level)
    apply(base, folder / "delta", folder / "again", digest_of_file(target))
    assert (folder / "again").read_bytes() == target.read_bytes()
    (folder / "again").unlink()
    return size


CASES = {
    "fine-tune": lambda t: finetuned(t),
    "head only": lambda t: t | {"head": t["head"] + np.float32(0.1)},
    "nothing": lambda t: t,
    "unrelated": lambda t: base_tensors(9),
    "new tensor": lambda t: t | {"more": np.arange(5000, dtype=np.float32)},
    "tensor gone": lambda t: {k: v for k, v in t.items() if k != "dense"},
    "other shape": lambda t: t | {"dense": t["dense"][:100]},
    "other order": lambda t: dict(reversed(t.items())),
}


@pytest.mark.parametrize("level", ["fast", "strong"])
@pytest.mark.parametrize("change", CASES.values(), ids=CASES.keys())
def test_every_kind_of_successor_comes_back_byte_by_byte(tmp_path, change, level):
    tensors = base_tensors()
    base = write_onnx(tmp_path / "a.onnx", tensors)
    target = write_onnx(tmp_path / "b.onnx", change(tensors), note="a longer name than before")
    round_trip(tmp_path, base, target, level)


def test_a_fine_tune_costs_little_more_than_its_entropy(tmp_path):
    tensors = {"w": base_tensors()["dense"].repeat(16, 0)}
    base = write_onnx(tmp_path / "a.onnx", tensors)
    target = write_onnx(tmp_path / "b.onnx", finetuned(tensors, rate=0.1))
    changed = tensors["w"].size / 2
    entropy = changed * (-0.9 * np.log2(0.9) - 0.1 * np.log2(0.05)) / 8
    assert round_trip(tmp_path, base, target, "strong") < 1.08 * entropy


def test_a_file_larger_than_a_segment_and_not_onnx_is_patched_from_its_base(tmp_path):
    noise = np.random.default_rng(0)
    base, target = tmp_path / "a.bin", tmp_path / "b.bin"
    base.write_bytes(noise.bytes(5 << 20))
    data = bytearray(base.read_bytes())
    data[100:100] = b"inserted"
    data[3_000_000:3_000_100] = b"x" * 100
    target.write_bytes(data)
    for level in ("fast", "strong"):
        assert round_trip(tmp_path, base, target, level) < 20_000


def test_weights_without_their_graph_are_taken_as_one_tensor(tmp_path):
    weights = base_tensors()["dense"].repeat(4, 0)
    (tmp_path / "a.bin").write_bytes(weights.tobytes() + b"tail")
    (tmp_path / "b.bin").write_bytes(finetuned({"w": weights}, rate=0.05)["w"].tobytes() + b"ends")
    assert round_trip(tmp_path, tmp_path / "a.bin", tmp_path / "b.bin", "strong") < 0.06 * weights.size


def test_a_large_tensor_is_cut_between_rows(tmp_path):
    noise = np.random.default_rng(0)
    tensors = {"w": noise.integers(-90, 90, (7001, 777), dtype=np.int8), "f": noise.normal(0, 1, 1_000_003).astype(np.float32)}
    base = write_onnx(tmp_path / "a.onnx", tensors)
    target = write_onnx(tmp_path / "b.onnx", finetuned(tensors))
    assert round_trip(tmp_path, base, target, "strong") < 0.5 * target.stat().st_size


def test_a_row_too_long_for_classes_of_its_own(tmp_path):
    tensors = {"w": np.random.default_rng(0).integers(-90, 90, (2, 3 << 18), dtype=np.int8)}
    base = write_onnx(tmp_path / "a.onnx", tensors)
    target = write_onnx(tmp_path / "b.onnx", finetuned(tensors))
    round_trip(tmp_path, base, target, "strong")


@settings(max_examples=60)
@given(base=st.binary(max_size=300), target=st.binary(max_size=300), level=st.sampled_from(["fast", "strong"]))
def test_any_two_files(tmp_path_factory, base, target, level):
    folder = tmp_path_factory.mktemp("delta")
    (folder / "a").write_bytes(base)
    (folder / "b").write_bytes(target)
    encode(folder / "a", folder / "b", folder / "d", level=level)
    apply(folder / "a", folder / "d", folder / "c", digest_of(target))
    assert (folder / "c").read_bytes() == target


@given(st.data(), st.sampled_from([1, 2, 4]))
def test_planes_are_undone(data, width):
    count = data.draw(st.integers(0, 50)) * width
    old, new = (data.draw(st.binary(min_size=count, max_size=count)) for _ in "ab")
    assert restore(old, difference(old, new, width), width) == new


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), sizes=st.lists(st.integers(0, 9000), min_size=1, max_size=3), skew=st.floats(0.01, 3))
def test_the_range_coder_is_undone(seed, sizes, skew):
    noise = np.random.default_rng(seed)
    lanes = lanes_for(sum(sizes))
    segments, counts = [], np.zeros((4, 256), np.int64)
    for size in sizes:
        size += -size % lanes
        symbols = (noise.exponential(skew, size).astype(np.int64) % 256).astype(np.uint8)
        contexts = noise.integers(0, 4, size)
        np.add.at(counts, (contexts, symbols), 1)
        segments.append((symbols, contexts))
    freqs = frequencies(counts)
    states, words = encode_lanes(segments, freqs, lanes)
    decoder = Decoder(table_of(freqs), states)
    for (symbols, contexts), own in zip(segments, words, strict=True):
        assert (decoder.decode(contexts.astype(np.int32) << 12, own) == symbols).all()
