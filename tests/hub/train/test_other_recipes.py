"""The tabular network and the vision transformer go the same way as the digits, each with its own recipe."""

from pathlib import Path

import pytest

from hub.train.breast_cancer import COLUMNS, BreastCancerRecipe
from hub.train.recipe import Schedule
from hub.train.runner import build
from hub.train.vit import VitRecipe
from model_formats.build.build import BuildResult
from model_formats.package.golden import check_golden, read_golden
from model_formats.runtimes.select import open_session


class ShortVit(VitRecipe):
    """Half-trained is enough here."""

    def schedule(self) -> Schedule:
        return Schedule(epochs=10, rate=3e-3)


@pytest.fixture(scope="module", params=[BreastCancerRecipe(), ShortVit()], ids=lambda r: r.name)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    folder = tmp_path_factory.mktemp(request.param.name)
    return build(request.param, folder / "model", runs=folder / "runs")


def test_it_is_adaptable_and_its_gate_passed(built: BuildResult) -> None:
    assert built.spec.adapter is not None
    assert built.evidence.gate.passed
    assert built.evidence.variants[0].score >= (0.94 if built.spec.model == "breast-cancer" else 0.6)


def test_every_variant_that_is_offered_gives_its_golden_outputs(built: BuildResult) -> None:
    golden = read_golden(built.folder / "golden.npz")
    for variant in built.spec.variants:
        for engine in variant.requires.engines:
            assert check_golden(open_session(built.folder / variant.main, engine=engine), golden, variant.name).ok


def test_int8_is_offered_only_where_it_is_faster(built: BuildResult) -> None:
    offered = {v.name for v in built.spec.variants}
    noted = any("no faster than fp32" in note for note in built.notes)
    assert ("onnx-int8" in offered) != noted
    assert {f.name for f in (built.folder / "variants").iterdir()} == offered


def test_transformers_get_dynamic_int8(built: BuildResult) -> None:
    recipes = {v.variant: v.recipe for v in built.evidence.variants}
    if built.spec.model == "digits-vit":
        assert recipes.get("onnx-int8", "dynamic INT8").startswith("dynamic INT8")
    else:
        assert recipes.get("onnx-int8", "static QDQ").startswith("static QDQ")


def test_columns_and_slices_of_a_table_are_named(built: BuildResult, tmp_path: Path) -> None:
    if built.spec.model == "breast-cancer":
        assert tuple(f.id for f in built.profile.features if f.source == "input") == COLUMNS
        assert {(s.column, s.value) for s in built.evidence.variants[0].slices} == {
            *(("class", c) for c in ("malignant", "benign")),
            *(("radius", r) for r in ("small", "large")),
        }
