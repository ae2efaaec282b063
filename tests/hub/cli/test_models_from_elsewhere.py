"""`hub model import`: a model that was trained elsewhere, rows in files, one command."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from hub.cli import group
from hub.train.datasets import breast_cancer
from hub.train.import_model import ContractUnclear, import_model
from model_formats.build.dataset import write_rows
from model_formats.core.array_file import ArraysRefused
from model_formats.core.console import run
from model_formats.core.document import DocumentRefused
from model_formats.documents.feature_contract import FeatureContract

SHARES = breast_cancer()
TERMS = ("--version", "3", "--zone", "eu", "--regime", "gdpr", "--quantize", "none")


@pytest.fixture
def rows(tmp_path):
    for name, some in (("train", SHARES.train), ("held", SHARES.held_out)):
        write_rows(tmp_path / f"{name}.npz", some)
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            page = csv.writer(file)
            page.writerow([*(f"m{i}" for i in range(30)), "slice:radius", "diagnosis"])
            for values, radius, label in zip(some.inputs["cells"], some.columns["radius"], some.labels, strict=True):
                page.writerow([*map(str, values), radius, ("malignant", "benign")[label]])
    return tmp_path


def weights():
    """A linear model in closed form, behind a scaling and a hidden layer that changes nothing."""
    x, y = SHARES.train.inputs["cells"].astype(np.float64), SHARES.train.labels
    mean, spread = x.mean(axis=0), x.std(axis=0)
    z = np.c_[(x - mean) / spread, np.ones(len(x))]
    best = np.linalg.solve(z.T @ z + np.eye(31), z.T @ np.c_[1 - y, y])
    return [a.astype(np.float32) for a in (mean, spread, np.eye(30), best[:30], best[30])]


def onnx_file(path, *, outputs=2, external=False):
    mean, spread, eye, head, bias = weights()
    known = {"mean": mean, "spread": spread, "eye": eye, "head.w": head[:, :outputs], "head.b": bias[:outputs]}
    nodes = [
        helper.make_node("Sub", ["measures", "mean"], ["a"]), helper.make_node("Div", ["a", "spread"], ["b"]),
        helper.make_node("MatMul", ["b", "eye"], ["c"]), helper.make_node("Gemm", ["c", "head.w", "head.b"], ["scores"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("measures", TensorProto.FLOAT, ["n", 30])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", outputs])],
        [numpy_helper.from_array(a, n) for n, a in known.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(model, str(path), save_as_external_data=external, location="weights.data", size_threshold=0)
    return path


def network():
    """What `module:factory` and the .pt2 file hold."""
    mean, spread, _, head, bias = map(torch.from_numpy, weights())
    scale, last = torch.nn.BatchNorm1d(30, eps=0, affine=False), torch.nn.Linear(30, 2)
    scale.running_mean, scale.running_var = mean, spread**2
    last.weight.data, last.bias.data = head.T.contiguous(), bias
    return torch.nn.Sequential(scale, last).eval()


def command(capfd, home, *words):
    capfd.readouterr()
    status = run(group, ["--home", str(home), "model", "import", "--no-emulate", *map(str, words), "--json"])
    told = capfd.readouterr()
    return status, json.loads(told.out) if told.out.strip() else None, told.err


def test_an_onnx_file_with_external_data_and_two_csv_files_become_a_model_folder(rows, capfd):
    onnx_file(rows / "model.onnx", external=True)
    files = ("--train", rows / "train.csv", "--held-out", rows / "held.csv", "--label", "diagnosis")
    (rows / "notes.txt").write_text("millimetres")
    status, built, error = command(
        capfd, rows / "hub", rows / "model.onnx", "--model", "cells", "--classes", "malignant, benign",
        "--asset", rows / "notes.txt", *files, *TERMS,
    )  # fmt: skip
    assert status == 0, error
    assert built["model"] == "cells@3"
    assert built["adaptable"]
    assert built["variants"][0]["score"] > 0.9
    folder = rows / "hub/builds/cells/3"
    assert (folder / "assets/notes.txt").read_text() == "millimetres"
    contract = FeatureContract.parse((folder / "contract.json").read_bytes())
    assert contract.classes == ("malignant", "benign")
    assert [f.name for f in contract.inputs[0].columns][:2] == ["m0", "m1"]
    evidence = json.loads((folder / "evidence.json").read_text())
    assert {s["value"] for s in evidence["variants"][0]["slices"]} == {"malignant", "benign", "large", "small"}
    assert evidence["lineage"]["source_format"] == "onnx"


def test_a_torch_program_and_a_factory_are_the_same_network(rows, capfd):
    program = torch.export.export(network(), (torch.ones(2, 30),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, rows / "model.pt2")
    contract = import_model(str(rows / "model.pt2"), rows / "train.npz", rows / "held.npz").contract
    assert contract.classes == ("0", "1")
    (rows / "contract.json").write_bytes(contract.canonical())
    files = ("--train", rows / "train.npz", "--held-out", rows / "held.npz", "--contract", rows / "contract.json")
    status, built, error = command(capfd, rows / "hub", rows / "model.pt2", "--model", "cells", *files, *TERMS)
    assert status == 0, error
    assert built["variants"][0]["score"] > 0.9
    factory = import_model(f"{__name__}:network", rows / "train.npz", rows / "held.npz")
    some = {"cells": SHARES.held_out.inputs["cells"][:5]}
    ours, theirs = factory.source, import_model(str(rows / "model.pt2"), rows / "train.npz", rows / "held.npz").source
    np.testing.assert_allclose(*(one.reference(some, factory.contract)["logits"] for one in (ours, theirs)), rtol=1e-5)


def test_classes_that_are_not_the_models_outputs_are_refused_and_nothing_is_written(rows, capfd):
    onnx_file(rows / "model.onnx", outputs=1)
    files = ("--train", rows / "train.npz", "--held-out", rows / "held.npz")
    status, _, error = command(capfd, rows / "hub", rows / "model.onnx", "--model", "cells", *files, *TERMS)
    assert status == 3
    assert "1 columns, the contract lists 2 classes" in error
    assert not list((rows / "hub/builds/cells").iterdir())


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("a,label\n1,0\nred,1\n", "line 3, column 'a': 'red' is no number"),
        ("a,label\n1,0\n1\n", "line 3 has 1 values"),
        ("a,b\n1,0\n", "no column 'label'"),
        ("a,a,label\n1,1,0\n", "a column twice"),
        ("", "is empty"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_by_line_and_column(rows, line, told):
    (rows / "bad.csv").write_text(line)
    with pytest.raises(ArraysRefused, match=told):
        import_model(str(onnx_file(rows / "m.onnx")), rows / "bad.csv", rows / "held.csv")


def test_labels_that_are_no_class_are_named(rows):
    with pytest.raises(ContractUnclear, match="'benign' is not among the classes"):
        import_model(
            str(onnx_file(rows / "m.onnx")), rows / "train.csv", rows / "held.csv", label="diagnosis", classes=("malignant",)
        )


def test_a_name_that_is_none_is_refused_before_anything_is_read(rows, capfd):
    files = ("--train", rows / "train.npz", "--held-out", rows / "held.npz")
    status, _, error = command(capfd, rows / "hub", rows / "not-there.onnx", "--model", "My Cells", *files, *TERMS)
    assert status == 2
    assert "'My Cells@3' is not a model version" in error


def test_classes_in_the_wrong_order_are_doubted_aloud(rows, capfd):
    onnx_file(rows / "model.onnx")
    files = ("--train", rows / "train.csv", "--held-out", rows / "held.csv", "--label", "diagnosis")
    words = (rows / "hub", rows / "model.onnx", "--model", "cells", "--classes", "benign,malignant", *files, *TERMS)
    status, built, error = command(capfd, *words)
    assert status == 0, error
    (doubt,) = [note for note in built["notes"] if "no better than always saying" in note]
    assert "in the order of the model's outputs?" in doubt
    assert error.count(doubt) == 1


def test_a_label_outside_the_classes_leads_to_the_option_that_names_them(rows):
    onnx_file(rows / "model.onnx")
    with pytest.raises(ContractUnclear, match="not among the classes good, bad") as caught:
        import_model(str(rows / "model.onnx"), rows / "train.csv", rows / "held.csv", label="diagnosis", classes=("good", "bad"))
    assert "--classes" in caught.value.hint


@pytest.mark.parametrize(
    ("header", "told"), [("b,a,label", "same columns in another order"), ("a,label", "the second has no column 'b'")]
)
def test_headers_that_differ_are_told_apart(rows, header, told):
    (rows / "one.csv").write_text("a,b,label\n1,2,0\n")
    (rows / "two.csv").write_text(f"{header}\n{'1,2,0' if header.count(',') == 2 else '1,0'}\n")
    with pytest.raises(ContractUnclear, match=told):
        import_model("model.onnx", rows / "one.csv", rows / "two.csv")


def test_a_contract_that_is_none_is_refused_with_the_name_of_its_file(rows):
    (rows / "contract.json").write_text("inputs: []")
    with pytest.raises(DocumentRefused, match=r"contract\.json: FeatureContract: not JSON"):
        import_model("model.onnx", rows / "train.npz", rows / "held.npz", contract=rows / "contract.json")


def test_a_row_with_nan_is_named_by_its_number(rows, capfd):
    bad = SHARES.held_out.inputs["cells"].copy()
    bad[6, 2] = np.nan
    write_rows(rows / "bad.npz", replace(SHARES.held_out, inputs={"cells": bad}))
    onnx_file(rows / "model.onnx")
    files = ("--train", rows / "train.npz", "--held-out", rows / "bad.npz")
    status, _, error = command(capfd, rows / "hub", rows / "model.onnx", "--model", "cells", *files, *TERMS)
    assert status == 3
    assert "in 1 rows, first in row 7" in error


def test_the_notebook_call_of_the_page_builds_a_model_folder(rows, monkeypatch):
    page = Path(__file__).parents[3] / "examples/models/README.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    onnx_file(rows / "model.onnx")
    (rows / "held.npz").rename(rows / "held-out.npz")
    monkeypatch.chdir(rows)
    exec(code, {})
    assert FeatureContract.read(rows / "build/fraud/contract.json").classes == ("good", "fraud")
