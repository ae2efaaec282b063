"""The digits model, trained and built once for all tests of this folder."""

from pathlib import Path

import pytest

from hub.train.runner import Trained, train
from model_formats.build.build import BuildResult, build_model_folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train("digits", runs=tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def digits(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    return build_model_folder(trained.source, tmp_path_factory.mktemp("built") / "digits", trained.data, trained.options)


@pytest.fixture(scope="session")
def int8(digits: BuildResult) -> Path:
    return digits.folder / "variants/onnx-int8/model.onnx"
