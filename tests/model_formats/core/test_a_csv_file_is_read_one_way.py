from pathlib import Path

import pytest

from model_formats.build.csv_rows import read_table
from model_formats.core.array_file import ArraysRefused
from model_formats.core.csv_file import read_csv
from model_formats.core.errors import OperatorError


def _written(folder: Path, text: str | bytes) -> Path:
    path = folder / "rows.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_columns_come_in_the_order_of_the_header_with_the_line_of_each_row(tmp_path: Path):
    path = _written(tmp_path, 'b,a\n1,"x\ny"\n\n2,ü\n')
    assert read_csv(path, OperatorError) == ({"b": ["1", "2"], "a": ["x\ny", "ü"]}, [3, 5])
    assert list(read_csv(path, OperatorError)[0]) == ["b", "a"]


@pytest.mark.parametrize(("text", "why"), [
    ("", "is empty"),
    ("a,b\n1,2\n\n3\n", "line 4 has 1 values"),
    ("a,b\n1,2,3\n", "line 2 has 3 values"),
    ("a,b,a\n1,2,3\n", "twice: 'a'"),
    ('a,b\n1,"2\n', "not a readable CSV"),
    (b"a,b\n1,\xff\n", "not a readable CSV"),
    ("a,b\n" + "1,2\n" * 100, "larger than 100 bytes"),
])  # fmt: skip
def test_what_is_no_table_is_refused_with_its_file_and_line_in_the_callers_words(tmp_path: Path, text: str | bytes, why: str):
    with pytest.raises(ArraysRefused, match=f"rows.csv: .*({why})"):
        read_csv(_written(tmp_path, text), ArraysRefused, max_bytes=100)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(ArraysRefused, match=r"rows\.csv"):
        read_csv(tmp_path / "rows.csv", ArraysRefused)


def test_a_word_among_numbers_is_named_by_its_line_in_the_file(tmp_path: Path):
    with pytest.raises(ArraysRefused, match="line 4, column 'a': 'much'"):
        read_table(_written(tmp_path, "a,label\n1,0\n\nmuch,1\n"))
