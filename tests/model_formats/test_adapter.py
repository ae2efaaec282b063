from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from hub.train.runner import Trained
from model_formats.build.build import BuildResult
from model_formats.core.array_file import ArraysRefused
from model_formats.core.runtime import AdapterRefused, LoadFailed, RunFailed
from model_formats.documents.package_spec import AdapterPoint
from model_formats.package.adapter import read_anchors, write_adapter, write_anchors
from model_formats.runtimes.select import open_session

POINT = AdapterPoint(features="features", weight="head.weight", bias="head.bias", output="logits")


def _spliced(source: Path, out: Path, weight: np.ndarray, bias: np.ndarray) -> Path:
    """The same model with its head exchanged in the file: what an adapter must equal."""
    model = onnx.load(str(source))
    for tensor in model.graph.initializer:
        if tensor.name in ("head.weight", "head.bias"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(weight if tensor.name == "head.weight" else bias, tensor.name))
    onnx.save(model, str(out))
    return out


@pytest.mark.parametrize("variant", ["onnx-fp32", "onnx-int8"])
def test_an_adapter_on_one_session_equals_the_spliced_model(
    digits: BuildResult, trained: Trained, tmp_path: Path, variant: str
) -> None:
    base = digits.folder / f"variants/{variant}/model.onnx"
    rng = np.random.default_rng(1)
    weight, bias = rng.normal(size=(64, 10)).astype(np.float32), rng.normal(size=10).astype(np.float32)
    write_adapter(tmp_path / "a.adapter", POINT, weight, bias)
    session, images = open_session(base), trained.data.held_out.inputs
    plain = session.run(images, ["logits"])[0]
    adapted = session.run(images, ["logits"], session.load_adapter(str(tmp_path / "a.adapter"), "mine"))[0]
    wanted = open_session(_spliced(base, tmp_path / "spliced.onnx", weight, bias)).run(images, ["logits"])[0]
    np.testing.assert_allclose(adapted, wanted, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(session.run(images, ["logits"])[0], plain)


def test_features_and_head_from_anchors_give_the_models_own_answers(digits: BuildResult, int8: Path, trained: Trained) -> None:
    head = read_anchors(digits.folder / "anchors.npz").head
    logits, features = open_session(int8).run(trained.data.held_out.inputs, ["logits", "features"])
    np.testing.assert_allclose(features @ head.weight + head.bias, logits, rtol=1e-4, atol=1e-4)


def test_anchors_are_a_hundred_hub_rows_over_all_classes(digits: BuildResult) -> None:
    anchors = read_anchors(digits.folder / "anchors.npz")
    assert anchors.features.dtype == np.float16
    assert np.bincount(anchors.labels).tolist() == [10] * 10
    with_inputs = sum(a.nbytes for a in anchors.inputs.values())
    assert (digits.folder / "anchors.npz").stat().st_size - with_inputs < 20_000


def test_anchors_come_with_the_inputs_that_give_their_features(digits: BuildResult, int8: Path) -> None:
    anchors = read_anchors(digits.folder / "anchors.npz")
    (features,) = open_session(int8).run(dict(anchors.inputs), ["features"])
    assert np.allclose(features, anchors.features, atol=0.02, rtol=0.01)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: replace(a, labels=a.labels[:-1]),
        lambda a: replace(a, head=replace(a.head, bias=a.head.bias[:-1])),
        lambda a: replace(a, head=replace(a.head, weight=a.head.weight * np.nan)),
        lambda a: replace(a, features=a.features[:, :3]),
    ],
)
def test_anchors_that_do_not_fit_their_head_are_refused(digits: BuildResult, tmp_path: Path, change) -> None:  # type: ignore[no-untyped-def]
    write_anchors(tmp_path / "anchors.npz", change(read_anchors(digits.folder / "anchors.npz")))
    with pytest.raises(ArraysRefused, match="do not fit"):
        read_anchors(tmp_path / "anchors.npz")


def test_an_adapter_for_another_head_is_refused(int8: Path, tmp_path: Path) -> None:
    session = open_session(int8)
    write_adapter(tmp_path / "narrow", POINT, np.ones((64, 9), np.float32), np.ones(9, np.float32))
    write_adapter(tmp_path / "other", POINT.replace(weight="trunk.weight"), np.ones((64, 10)), np.ones(10))
    for name in ("narrow", "other"):
        with pytest.raises(AdapterRefused, match=name):
            session.load_adapter(str(tmp_path / name), name)


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"not an adapter" * 100])
def test_a_file_that_is_no_adapter_is_refused(int8: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(AdapterRefused):
        open_session(int8).load_adapter(str(tmp_path / "bad"), "bad")


def test_heads_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not finite"):
        write_adapter(tmp_path / "a", POINT, np.full((2, 2), np.inf), np.ones(2))
    assert not (tmp_path / "a").exists()


def test_openvino_says_that_it_takes_no_adapters(int8: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterRefused, match="OpenVINO"):
        open_session(int8, engine="openvino").load_adapter(str(tmp_path / "a"), "a")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_damaged_files_and_wrong_shapes_raise_our_errors(int8: Path, tmp_path: Path, engine) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "cut.onnx").write_bytes(int8.read_bytes()[:20_000])
    with pytest.raises(LoadFailed, match=r"cut\.onnx"):
        open_session(tmp_path / "cut.onnx", engine=engine)
    with pytest.raises(RunFailed):
        open_session(int8, engine=engine).run({"image": np.zeros((1, 1, 7, 8), np.float32)})


def test_openvino_never_imports_its_telemetry(int8: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from model_formats.runtimes.select import open_session\n"
        "open_session(Path(sys.argv[1]), engine='openvino')\n"
        "assert sys.modules['openvino_telemetry'] is None, 'telemetry was imported'\n"
    )
    subprocess.run([sys.executable, "-c", code, str(int8)], check=True, timeout=60)
