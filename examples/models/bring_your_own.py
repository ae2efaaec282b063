"""Bring your own model: a small network for the breast-cancer table, from plain torch to a checked model folder.

    python examples/models/bring_your_own.py OUT

The same call takes an ONNX file, a `.pt2` program or a Hugging Face folder: see `model_formats.export.open.open_source`.
"""

import sys
from pathlib import Path

import torch

from hub.train.datasets import breast_cancer
from model_formats.build.build import BuildOptions, BuildResult, build_model_folder
from model_formats.build.dataset import BuildData
from model_formats.documents.feature_contract import FeatureContract, TensorContract
from model_formats.export.torch_module import TorchModule


def train(table: torch.Tensor, labels: torch.Tensor) -> torch.nn.Module:
    """Your own training, whatever it is. The last layer is linear, so sites will be able to fit their own."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.BatchNorm1d(30), torch.nn.Linear(30, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(60):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(table), labels).backward()
        optimiser.step()
    return network


def main(out: Path) -> BuildResult:
    """Rows, contract, options; then one call."""
    shares = breast_cancer()
    network = train(torch.from_numpy(shares.train.inputs["cells"]), torch.from_numpy(shares.train.labels))
    contract = FeatureContract(
        task="classification",
        inputs=(TensorContract(name="cells", datatype="FP32", shape=(-1, 30), low=0.0),),
        outputs=(TensorContract(name="logits", datatype="FP32", shape=(-1, 2)),),
        classes=("malignant", "benign"),
    )
    options = BuildOptions(
        model="my-table",
        version=1,
        title="My first model",
        licence="Apache-2.0",
        contract=contract,
        zones=("eu",),
        regimes=("gdpr",),
    )
    source = TorchModule(network, shares.held_out.inputs)
    return build_model_folder(source, out, BuildData(shares.train, shares.held_out), options, progress=print)


if __name__ == "__main__":
    print((main(Path(sys.argv[1])).folder / "README.md").read_text())
