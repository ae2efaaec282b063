"""What the hub promises of its training holds on a GPU.

Runs where there is one: `pytest --noconftest tests/hub/train/test_on_a_gpu.py`.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from hub.train.runner import Trained, recipe, train
from model_formats.build.dataset import Rows
from model_formats.runtimes.onnx import open_onnx

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture(scope="module", params=["digits", "digits-vit", "breast-cancer"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(request.param, runs=tmp_path_factory.mktemp("runs"))


def test_it_trains_there_and_learns_as_much(trained: Trained) -> None:
    assert trained.record.device == "cuda"
    assert trained.record.metrics["held_out_accuracy"] > {"digits-vit": 0.88}.get(trained.record.recipe, 0.95)  # as on a CPU


def test_the_same_seed_gives_the_same_weights(trained: Trained, tmp_path: Path) -> None:
    again = train(trained.record.recipe, runs=tmp_path)
    assert again.record.weights == trained.record.weights


def test_the_package_answers_on_a_cpu_as_the_network_does(trained: Trained, tmp_path: Path) -> None:
    contract = recipe(trained.record.recipe).options(1).contract
    trained.source.export(tmp_path / "model.onnx", contract)
    rows: Rows = trained.data.held_out
    wanted = trained.source.reference(rows.inputs, contract)
    assert wanted is not None
    found = open_onnx(tmp_path / "model.onnx").run(rows.inputs, list(wanted))
    for name, array in zip(wanted, found, strict=True):
        np.testing.assert_allclose(array, wanted[name], rtol=1e-3, atol=1e-4)
