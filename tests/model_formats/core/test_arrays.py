import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from model_formats.core.array_file import ArraysRefused, read_arrays, write_arrays

ANY_ARRAY = hnp.arrays(
    dtype=st.sampled_from(["f4", "f8", "f2", "i8", "u1", "?", "S5"]),
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)


@settings(max_examples=60)
@given(arrays=st.dictionaries(st.from_regex(r"[a-z][a-z:./]{0,10}[a-z]", fullmatch=True), ANY_ARRAY, min_size=1, max_size=4))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray]) -> None:
    path = tmp_path_factory.mktemp("a") / "x.npz"
    write_arrays(path, arrays)
    back = read_arrays(path)
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)


def test_equal_arrays_give_equal_bytes(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a", {"x": np.arange(3), "y": np.ones(2)})
    write_arrays(tmp_path / "b", {"y": np.ones(2), "x": np.arange(3)})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_numpy_itself_reads_what_we_write(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.npz", {"x": np.arange(3)})
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        np.testing.assert_array_equal(found["x"], np.arange(3))


def test_objects_are_refused_when_writing(tmp_path: Path) -> None:
    with pytest.raises(ArraysRefused, match="x: type object"):
        write_arrays(tmp_path / "a.npz", {"x": np.array([{}], dtype=object)})


def _pickled(path: Path) -> None:
    np.savez(path, x=np.array([{"a": 1}], dtype=object), allow_pickle=True)


def _compressed_bomb(path: Path) -> None:
    np.savez_compressed(path, x=np.zeros(10_000_000))


def _too_large(path: Path) -> None:
    np.savez(path, x=np.zeros(2_000_000))


def _header_claims_more_than_there_is(path: Path) -> None:
    np.savez(path, x=np.zeros(4))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"'shape': (4,)", b"'shape': (9,)"))


def _not_an_archive(path: Path) -> None:
    path.write_bytes(b"\x80\x04K\x01.")


def _truncated(path: Path) -> None:
    np.savez(path, x=np.zeros(100))
    path.write_bytes(path.read_bytes()[:300])


def _name_twice(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"")
        archive.writestr("y.npy", b"")
    path.write_bytes(path.read_bytes().replace(b"y.npy", b"x.npy"))


def _other_files_inside(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("run.sh", b"echo")


def _garbage_header(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00\x10\x00__import__('os')")


@pytest.mark.parametrize(
    "make",
    [
        _pickled,
        _compressed_bomb,
        _too_large,
        _header_claims_more_than_there_is,
        _not_an_archive,
        _truncated,
        _name_twice,
        _other_files_inside,
        _garbage_header,
    ],
)
def test_bad_files_are_refused_by_name(tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "bad.npz"
    make(path)
    with pytest.raises(ArraysRefused, match=r"bad\.npz"):
        read_arrays(path, max_bytes=1 << 20)
