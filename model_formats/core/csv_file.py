"""A CSV file as columns of text, read once for all who take rows from one."""

import csv
from pathlib import Path

from model_formats.core.errors import SpokeshaveError

__all__ = ["read_csv"]


def read_csv(
    path: Path, refused: type[SpokeshaveError], *, max_bytes: int | None = None
) -> tuple[dict[str, list[str]], list[int]]:
    """Columns by name in the order of the header, and the line of each row; empty lines are skipped.

    Raises `refused`, with the line, where the file is too large or no CSV, has no header or a name twice, or a row is not as
    wide as the header.
    """
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        if max_bytes is not None and path.stat().st_size > max_bytes:
            raise refused(f"{path.name}: larger than {max_bytes} bytes", hint="Give the rows as .npz.")
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            _check_header(path, header, refused)
            for row in filter(None, reader):
                if len(row) != len(header):
                    why = f"line {reader.line_num} has {len(row)} values, not the header's number of columns ({len(header)})"
                    raise refused(f"{path.name}: {why}")
                rows.append(row)
                lines.append(reader.line_num)
    except (OSError, ValueError, csv.Error) as e:
        raise refused(f"{path.name}: not a readable CSV file with a header: {e}") from e
    return {name: [row[place] for row in rows] for place, name in enumerate(header)}, lines


def _check_header(path: Path, header: list[str], refused: type[SpokeshaveError]) -> None:
    if not header:
        raise refused(f"{path.name}: is empty", hint="Write a header and a line for each row.")
    if len(set(header)) != len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise refused(f"{path.name}: the header has a column twice: {twice!r}")
