from pathlib import Path

import numpy as np
import pytest

from hub.train.datasets import breast_cancer
from model_formats.build.dataset import read_rows, write_rows
from model_formats.core.array_file import ArraysRefused, write_arrays
from model_formats.export.exported_program import ExportedProgram
from model_formats.export.onnx_file import OnnxFile
from model_formats.export.open import open_source
from model_formats.export.source import SourceRefused
from model_formats.export.torch_module import TorchModule


def test_the_form_of_the_word_says_what_the_source_is(tmp_path: Path) -> None:
    example = {"image": np.zeros((3, 1, 8, 8), np.float32)}
    assert isinstance(open_source("some/model.onnx", example), OnnxFile)
    assert isinstance(open_source("some/model.pt2", example), ExportedProgram)
    assert isinstance(open_source("hub.train.digits:_network", example), TorchModule)
    for text in ("model.pkl", "weights.bin", str(tmp_path / "absent.txt")):
        with pytest.raises(SourceRefused, match="no model source"):
            open_source(text, example)


def test_rows_keep_their_digest_through_a_file(tmp_path: Path) -> None:
    rows = breast_cancer().held_out
    write_rows(tmp_path / "rows.npz", rows)
    assert read_rows(tmp_path / "rows.npz").digest == rows.digest


@pytest.mark.parametrize(
    "arrays", [{"labels": np.zeros(3)}, {"input:x": np.zeros(3)}, {"input:x": np.zeros(2), "labels": np.zeros(3)}]
)
def test_files_without_inputs_or_labels_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    write_arrays(tmp_path / "rows.npz", arrays)
    with pytest.raises(ArraysRefused, match="same number of rows"):
        read_rows(tmp_path / "rows.npz")
