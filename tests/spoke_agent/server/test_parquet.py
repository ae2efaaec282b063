"""Parquet in and out, with the real library."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from click.testing import CliRunner
from pyarrow import parquet

from model_formats.documents.feature_contract import FeatureContract, Field_, TensorContract
from spoke_agent.cli import group
from spoke_agent.data.importing import read_rows as imported
from spoke_agent.data.parquet import ParquetInvalid, ParquetMissing, read_columns
from spoke_agent.server.offline import batch_inference
from spoke_agent.server.offline.batch_inference import infer_file
from spoke_agent.server.offline.tables import TableInvalid
from spoke_agent.server_api.errors import RequestInvalid
from tests.spoke_agent.server.sites import cnn, digits_contract, image
from tests.spoke_agent.server.test_batch_inference import _polite, served  # noqa: F401 - a fixture


def write(path, columns):
    parquet.write_table(pyarrow.table(columns), path, row_group_size=40)
    return path


def pixels(x, name="p{}"):
    return {name.format(i): column for i, column in enumerate(x.reshape(len(x), 64).T)}


def test_columns_of_numbers_give_the_servers_answers(site, tmp_path):
    _, session = served(site)
    x = image(150, seed=4)
    rows = write(tmp_path / "rows.parquet", {"id": [f"r{i}" for i in range(150)], **pixels(x)})
    assert infer_file(site.home, "digits", rows, tmp_path / "out.parquet").rows == 150
    expected = session.run({"image": x}, ["logits"])[0]
    out = parquet.read_table(tmp_path / "out.parquet")
    assert out.column("prediction").to_pylist() == [str(c) for c in expected.argmax(axis=1)]
    np.testing.assert_allclose(out.column("logits_3").to_numpy(), expected[:, 3], rtol=1e-4, atol=1e-4)
    assert out.column("row").to_pylist() == list(range(150))


def test_a_column_of_lists_is_an_input(site, tmp_path):
    _, session = served(site)
    x = image(20)
    rows = write(tmp_path / "rows.parquet", {"image": [row.ravel().tolist() for row in x]})
    infer_file(site.home, "digits", rows, tmp_path / "out.csv")
    written = (tmp_path / "out.csv").read_text().splitlines()[1:]
    assert [int(line.split(",")[1]) for line in written] == session.run({"image": x}, ["logits"])[0].argmax(axis=1).tolist()


def test_the_command_says_in_json_what_it_did(site, tmp_path):
    served(site)
    rows = write(tmp_path / "rows.parquet", pixels(image(3)))
    words = ["infer", "--model", "digits", "--input", str(rows), "--output", str(tmp_path / "out.parquet")]
    result = CliRunner().invoke(group, ["--home", str(site.home), "--json", *words])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rows"] == 3


@pytest.mark.parametrize(
    ("columns", "error", "words"),
    [
        (lambda: {"image": [[1.0] * 64, [1.0] * 63]}, ParquetInvalid, "one length"),
        (lambda: {"image": [[1.0] * 63] * 2}, TableInvalid, "shape"),
        (lambda: {**pixels(image(2)), "p7": pyarrow.array([None, 1.0])}, RequestInvalid, "NaN"),
        (lambda: {**pixels(image(2)), "p7": ["a", "b"]}, TableInvalid, "p7"),
        (lambda: {**pixels(image(2)), "p7": pyarrow.array([None, "b"])}, ParquetInvalid, "p7.*absent"),
    ],
)
def test_a_file_that_does_not_fit_is_named(site, tmp_path, columns, error, words):
    served(site)
    with pytest.raises(error, match=words):
        infer_file(site.home, "digits", write(tmp_path / "rows.parquet", columns()), tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_a_damaged_file_is_refused_by_name(tmp_path):
    rows = write(tmp_path / "rows.parquet", pixels(image(30)))
    whole = rows.read_bytes()
    for damaged in (b"", b"PAR1", whole[:-9], whole[:100] + bytes(100) + whole[200:-200] + bytes(200)):
        rows.write_bytes(damaged)
        with pytest.raises(ParquetInvalid, match=r"rows\.parquet"):
            read_columns(rows)


def test_without_the_library_it_says_what_to_install(tmp_path, monkeypatch):
    rows = write(tmp_path / "rows.parquet", pixels(image(1)))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ParquetMissing, match="pyarrow") as caught:
        read_columns(rows)
    assert "spokeshave[parquet]" in caught.value.hint


def test_import_reads_the_same_files(tmp_path):
    x, labels = image(5), ["3", None, "0", "9", "1"]
    for name, columns in {"lists": {"image": [r.ravel().tolist() for r in x]}, "flat": pixels(x, "image.{}")}.items():
        (found,) = imported(write(tmp_path / f"{name}.parquet", {**columns, "label": [3, None, 0, 9, 1]}), digits_contract())
        np.testing.assert_array_equal(found.inputs["image"], x)
        np.testing.assert_array_equal(found.labels, [float(v) if v else np.nan for v in labels])


def test_import_reads_categories_by_their_names(tmp_path):
    columns = (Field_(name="kind", categories=("till", "camera")), Field_(name="size", low=0, high=9))
    contract = FeatureContract(
        task="regression",
        inputs=(TensorContract(name="x", datatype="FP32", shape=(-1, 2), columns=columns),),
        outputs=(TensorContract(name="y", datatype="FP32", shape=(-1, 1)),),
    )
    (found,) = imported(write(tmp_path / "rows.parquet", {"kind": ["camera", "till"], "size": [2, 3]}), contract)
    assert found.inputs["x"].tolist() == [[1, 2], [0, 3]]


def test_killed_in_the_middle_it_goes_on_at_low_priority(site, tmp_path):
    site.slots(champion=site.publish(1, proto=cnn(1, layers=4, channels=32)))
    rows = 3 * batch_inference._PART_ROWS
    source = write(tmp_path / "rows.parquet", {"image": list(image(rows).reshape(rows, 64))})
    words = [sys.executable, "-m", "spoke_agent", "--home", str(site.home), "--json", "infer", "--model", "digits"]
    words += ["--input", str(source), "--output", str(tmp_path / "out.parquet")]
    first = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    parts = tmp_path / "out.parquet.parts"
    while not list(parts.glob("*.npz")):
        assert first.poll() is None
        time.sleep(0.005)
    nice = int(Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[16])
    first.kill()
    assert first.wait() < 0
    assert nice == 10
    assert not (tmp_path / "out.parquet").exists()
    second = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    assert (second["rows"], second["resumed_rows"] // batch_inference._PART_ROWS in (1, 2)) == (rows, True)
    assert parquet.read_metadata(tmp_path / "out.parquet").num_rows == rows
