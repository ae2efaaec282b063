import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.train.corruptions import turn
from hub.train.runner import Trained
from model_formats.build.build import BuildResult
from model_formats.documents.feature_contract import FeatureContract, Field_, TensorContract
from model_formats.statistics.reference_profile import ProfileRefused, ReferenceProfile, _draw, build_profile, columns, count, rff

TABLE = FeatureContract(
    task="classification",
    inputs=(
        TensorContract(
            name="row",
            datatype="FP32",
            shape=(-1, 3),
            columns=(
                Field_(name="age", may_be_missing=True),
                Field_(name="unit", categories=("a", "b", "c")),
                Field_(name="same"),
            ),
        ),
    ),
    outputs=(TensorContract(name="scores", datatype="FP32", shape=(-1, 2)),),
    classes=("no", "yes"),
)


def _table(rows: int, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    table = np.stack([rng.normal(50, 10, rows), rng.integers(0, 3, rows), np.full(rows, 7.0)], axis=1).astype(np.float32)
    table[::17, 0] = np.nan
    return {"row": table}, {"scores": rng.normal(size=(rows, 2)).astype(np.float32)}


@pytest.fixture(scope="module")
def profile() -> ReferenceProfile:
    return build_profile(TABLE, *_table(3000))


def test_round_trip_is_exact(profile: ReferenceProfile, digits: BuildResult) -> None:
    for one in (profile, digits.profile):
        assert ReferenceProfile.parse(one.canonical()) == one


def test_columns_are_named_and_missing_is_nan(profile: ReferenceProfile) -> None:
    assert [f.id for f in profile.features] == ["age", "unit", "same", "prediction", "confidence"]
    table = columns(profile, *_table(34))
    assert table.shape == (34, 5)
    assert np.isnan(table[::17, 0]).all()
    assert ((table[:, 4] >= 0.5) & (table[:, 4] <= 1)).all()


def test_reference_counts_hold_every_row_and_the_missing_ones(profile: ReferenceProfile) -> None:
    for feature in profile.features:
        assert sum(feature.counts) == 3000
        assert len(feature.counts) == feature.cells
    age = profile.feature("age")
    assert age is not None
    assert age.counts[-1] == len(range(0, 3000, 17))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1000),
    cut=st.integers(0, 200),
    wild=st.lists(st.sampled_from([np.inf, -np.inf, np.nan, 1e30, -5.0]), max_size=5),
)
def test_counts_of_parts_add_up_to_the_whole(profile: ReferenceProfile, seed: int, cut: int, wild: list[float]) -> None:
    inputs, outputs = _table(200, seed)
    inputs["row"][: len(wild), 0] = wild
    whole = columns(profile, inputs, outputs)
    parts = zip(count(profile, whole[:cut]), count(profile, whole[cut:]), count(profile, whole), strict=True)
    assert all((a + b == c).all() and c.sum() == 200 for a, b, c in parts)


def test_an_unknown_category_is_counted_as_other(profile: ReferenceProfile) -> None:
    inputs, outputs = _table(30)
    inputs["row"][:, 1] = 9
    assert count(profile, columns(profile, inputs, outputs))[1].tolist() == [0, 0, 0, 30, 0]


def test_a_constant_column_that_moves_leaves_its_cell(profile: ReferenceProfile) -> None:
    inputs, outputs = _table(30)
    assert count(profile, columns(profile, inputs, outputs))[2].tolist() == [0, 30, 0, 0]
    inputs["row"][:, 2] = 7.01
    assert count(profile, columns(profile, inputs, outputs))[2].tolist() == [0, 0, 30, 0]


def test_a_feature_takes_few_bytes_as_counts(profile: ReferenceProfile) -> None:
    age = profile.feature("age")
    assert age is not None
    assert 30 <= len(age.edges) <= 42


def test_joint_features_have_the_reference_mean_on_the_reference(profile: ReferenceProfile) -> None:
    joint = rff(profile, columns(profile, *_table(3000)))
    assert profile.joint is not None
    np.testing.assert_allclose(joint.mean(axis=0), profile.joint.mean, atol=1e-8)
    np.testing.assert_allclose(np.cov(joint, rowvar=False), profile.joint.covariance, atol=1e-8)


def test_joint_parameters_are_the_same_on_every_machine() -> None:
    weights, phases = _draw("spokeshave", 2, 2, 1.0)
    assert weights.tolist() == [[-0.079681396484375, -0.1326904296875], [0.2617950439453125, -1.294952392578125]]
    assert phases.tolist() == [0.6676651379272254, 5.0739290773294865]


def test_other_joint_parameters_than_signed_are_refused(profile: ReferenceProfile) -> None:
    assert profile.joint is not None
    forged = profile.replace(joint=profile.joint.replace(seed="other"))
    with pytest.raises(ProfileRefused, match=r"joint\.parameters"):
        rff(forged, columns(forged, *_table(10)))


def test_the_edges_digest_tells_cells_apart_and_ignores_counts(profile: ReferenceProfile) -> None:
    assert build_profile(TABLE, *_table(3000)).edges_digest == profile.edges_digest
    assert build_profile(TABLE, *_table(3000, seed=5)).edges_digest != profile.edges_digest
    emptied = profile.replace(features=tuple(f.replace(counts=(0,) * f.cells) for f in profile.features))
    assert emptied.edges_digest == profile.edges_digest


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ProfileRefused, match="19 reference rows"):
        build_profile(TABLE, *_table(19))


def test_a_column_without_any_value_is_refused() -> None:
    inputs, outputs = _table(50)
    inputs["row"][:, 0] = np.nan
    with pytest.raises(ProfileRefused, match="column age"):
        build_profile(TABLE, inputs, outputs)


def test_turned_digits_look_different_in_the_joint_features(digits: BuildResult, trained: Trained) -> None:
    held = trained.data.held_out.inputs["image"]
    profile = digits.profile
    assert profile.joint is not None

    def distance(images: np.ndarray) -> float:
        shift = rff(profile, columns(profile, {"image": images}, {})).mean(axis=0) - np.array(
            profile.joint.mean if profile.joint else ()
        )
        return float(shift @ np.linalg.solve(np.array(profile.joint.covariance if profile.joint else ()), shift))

    assert distance(turn(held, 35)) > 10 * distance(held)
