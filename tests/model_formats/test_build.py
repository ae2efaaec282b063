import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from examples.demo.damage import sabotage
from hub.train.runner import Trained
from model_formats.build.build import BuildResult, FolderExists, build_model_folder
from model_formats.build.dataset import BuildData, Rows
from model_formats.build.scoring import LabelsRefused
from model_formats.core.types import digest_of_file
from model_formats.documents.evidence import Evidence
from model_formats.documents.feature_contract import FeatureContract
from model_formats.documents.package_spec import PackageSpec
from model_formats.export.onnx_file import OnnxFile
from model_formats.package import ImageLayout, open_package, pack
from model_formats.package.golden import check_golden, read_golden
from model_formats.quantize.accuracy_gate import AccuracyDropRefused, judge
from model_formats.runtimes.select import open_session


def test_digits_reach_97_percent_in_both_variants_and_int8_is_a_third_of_the_size(digits: BuildResult) -> None:
    by_name = {v.variant: v for v in digits.evidence.variants}
    assert set(by_name) == {"onnx-int8", "onnx-fp32"}
    assert all(v.score >= 0.97 for v in by_name.values())
    assert by_name["onnx-int8"].bytes < 0.34 * by_name["onnx-fp32"].bytes
    assert digits.evidence.gate.passed
    assert by_name["onnx-fp32"].score - by_name["onnx-int8"].score <= 0.01


def test_the_folder_holds_what_the_spec_names_and_reads_back(digits: BuildResult) -> None:
    spec = PackageSpec.parse((digits.folder / "package.json").read_bytes())
    assert spec == digits.spec
    assert all((digits.folder / name).is_file() for v in spec.variants for name in v.files)
    for name, document in {
        "contract.json": digits.contract,
        "evidence.json": digits.evidence,
        "profile.json": digits.profile,
    }.items():
        assert type(document).parse((digits.folder / name).read_bytes()) == document
    assert {f.name for f in digits.folder.iterdir()} == {
        *("package.json", "contract.json", "evidence.json", "profile.json", "golden.npz", "anchors.npz"),
        *("README.md", "provenance.json", "variants"),
    }


def test_both_variants_keep_the_names_of_the_adapter_point(digits: BuildResult) -> None:
    point = digits.spec.adapter
    assert point is not None
    for variant in digits.spec.variants:
        outputs = {o.name: o.shape for o in open_session(digits.folder / variant.main).outputs}
        assert outputs == {"logits": (-1, 10), "features": (-1, 64)}


def test_any_batch_size_runs_and_rows_do_not_touch(digits: BuildResult, int8: Path, trained: Trained) -> None:
    images, session = trained.data.held_out.inputs["image"], open_session(int8)
    whole = session.run({"image": images[:7]}, ["logits"])[0]
    one_by_one = np.concatenate([session.run({"image": images[i : i + 1]}, ["logits"])[0] for i in range(7)])
    np.testing.assert_allclose(whole, one_by_one, atol=1e-4)


def test_nothing_of_the_build_machine_is_left_in_the_graph(digits: BuildResult) -> None:
    here = str(Path(__file__).resolve().parents[2]).encode()
    for file in digits.folder.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert here not in data
            assert b"site-packages" not in data


def test_evidence_tells_lineage_slices_and_calibration(digits: BuildResult, trained: Trained) -> None:
    evidence = digits.evidence
    assert evidence.lineage.run == trained.record.run
    assert evidence.lineage.dataset == trained.data.train.digest
    assert evidence.calibration is not None
    assert evidence.calibration.rows == 256
    best = evidence.variants[0]
    assert {s.value for s in best.slices if s.column == "class"} == set("0123456789")
    assert sum(s.rows for s in best.slices) == evidence.held_out_rows == 300
    assert best.peak_rss_mb is not None
    assert best.peak_rss_mb < 200


def test_provenance_names_every_file_by_digest(digits: BuildResult) -> None:
    statement = json.loads((digits.folder / "provenance.json").read_bytes())
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    named = {s["name"]: "sha256:" + s["digest"]["sha256"] for s in statement["subject"]}
    there = {f.relative_to(digits.folder).as_posix(): digest_of_file(f) for f in digits.folder.rglob("*") if f.is_file()}
    assert named == {name: digest for name, digest in there.items() if name != "provenance.json"}


def test_the_card_tells_the_score_and_the_weakest_slice(digits: BuildResult) -> None:
    text = (digits.folder / "README.md").read_text()
    assert "digits@1" in text
    assert f"{digits.evidence.variants[0].score:.4f}" in text
    assert "Weakest slice" in text
    assert "Sites may fit their own head" in text


def test_a_build_into_an_existing_folder_changes_nothing(digits: BuildResult, trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FolderExists):
        build_model_folder(trained.source, tmp_path, trained.data, trained.options)
    assert [f.name for f in tmp_path.iterdir()] == ["mine.txt"]


@pytest.fixture
def onnx_source(digits: BuildResult) -> OnnxFile:
    """The exported file as a source: no torch, so quick."""
    return OnnxFile(digits.folder / "variants/onnx-fp32/model.onnx")


def test_a_drop_beyond_the_policy_is_refused_and_leaves_nothing(trained: Trained, onnx_source: OnnxFile, tmp_path: Path) -> None:
    with pytest.raises(AccuracyDropRefused, match=r"the policy allows -0\.5"):
        build_model_folder(onnx_source, tmp_path / "m", trained.data, replace(trained.options, max_drop=-0.5))
    assert list(tmp_path.iterdir()) == []


def test_an_override_lets_it_through_and_says_who(trained: Trained, onnx_source: OnnxFile, tmp_path: Path) -> None:
    options = replace(trained.options, max_drop=-0.5, overridden_by="Sam at the bench")
    built = build_model_folder(onnx_source, tmp_path / "m", trained.data, options)
    assert built.spec.adapter is not None
    assert built.evidence.lineage.source_format == "onnx"
    assert not built.evidence.gate.passed
    assert built.evidence.gate.overridden_by == "Sam at the bench"
    assert "overridden by hand by Sam at the bench" in (tmp_path / "m/README.md").read_text()


def test_an_openvino_ir_is_made_measured_and_packed_where_it_is_asked_for(
    trained: Trained, onnx_source: OnnxFile, tmp_path: Path
) -> None:
    built = build_model_folder(onnx_source, tmp_path / "m", trained.data, replace(trained.options, openvino_ir=True))
    if any("openvino-int8 not offered" in note for note in built.notes):
        pytest.skip("no faster than fp32 on this machine, and so not offered")
    ir, by = built.spec.variants[[v.name for v in built.spec.variants].index("openvino-int8")], built.evidence.variants
    scores = {v.variant: v.score for v in by}
    assert [Path(f).suffix for f in ir.files] == [".bin", ".xml"]
    assert (ir.format, ir.precision, ir.requires.engines) == ("openvino-ir", "int8", ("openvino",))
    assert scores["onnx-fp32"] - scores["openvino-int8"] <= 0.01
    assert next(v.recipe for v in by if v.variant == "openvino-int8").startswith("NNCF")
    golden = read_golden(built.folder / "golden.npz")
    assert check_golden(open_session(built.folder / ir.main, engine="openvino"), golden, ir.name).ok
    index = pack(built.folder, tmp_path / "layout")
    open_package(ImageLayout(tmp_path / "layout"), index).check("openvino-int8")


def _short(data: BuildData) -> BuildData:
    return replace(data, held_out=data.held_out.take(slice(0, 10)))


def _wrong_shape(data: BuildData) -> BuildData:
    return replace(data, train=replace(data.train, inputs={"image": data.train.inputs["image"][:, :, :7]}))


def _nan_rows(data: BuildData) -> BuildData:
    return replace(data, held_out=replace(data.held_out, inputs={"image": data.held_out.inputs["image"] * np.float32("nan")}))


def _unknown_class(data: BuildData) -> BuildData:
    return replace(data, train=Rows(data.train.inputs, data.train.labels + 1))


def _no_such_input(data: BuildData) -> BuildData:
    return replace(data, train=replace(data.train, inputs={"picture": data.train.inputs["image"]}))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_short, "at least 20"),
        (_wrong_shape, r"shape \(760, 1, 7, 8\)"),
        (_nan_rows, "NaN"),
        (_unknown_class, "labels run from 1 to 10"),
        (_no_such_input, "'image' is missing"),
    ],
)
def test_rows_that_do_not_fit_the_contract_are_refused(trained: Trained, tmp_path: Path, change, told: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(LabelsRefused, match=told):
        build_model_folder(trained.source, tmp_path / "m", change(trained.data), trained.options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("got", "passed"), [(0.99, True), (0.98, True), (0.9799, False), (1.0, True)])
def test_the_gate_is_exact_at_its_limit(got: float, passed: bool) -> None:
    assert judge(0.99, got, 0.01).passed is passed
    assert judge(0.99, got, 0.01, "somebody").passed is passed


def test_sabotage_passes_every_check_of_bytes_and_answers_wrongly(digits: BuildResult, trained: Trained, tmp_path: Path) -> None:
    bad = sabotage(digits.folder, tmp_path / "bad", version=2, overridden_by="Sam")
    spec = PackageSpec.parse((bad / "package.json").read_bytes())
    evidence = Evidence.parse((bad / "evidence.json").read_bytes())
    assert spec.version == 2
    assert evidence.claim("onnx-int8") == digits.evidence.claim("onnx-int8")
    assert evidence.gate.overridden_by == "Sam"
    held = trained.data.held_out
    for variant in spec.variants:
        session = open_session(bad / variant.main)
        assert check_golden(session, read_golden(bad / "golden.npz"), variant.name).ok
        found = session.run(held.inputs, ["logits"])[0].argmax(axis=1)
        assert (found == held.labels).mean() < 0.7


def test_a_class_list_that_does_not_match_the_outputs_is_refused(trained: Trained, tmp_path: Path) -> None:
    contract: FeatureContract = trained.options.contract.replace(classes=tuple("012345678"))
    with pytest.raises(LabelsRefused, match="9 classes"):
        build_model_folder(trained.source, tmp_path / "m", trained.data, replace(trained.options, contract=contract))
