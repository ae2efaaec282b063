"""`spoke infer`: files in, files out, resumable, the same answers as the server's."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner

from model_formats.core.array_file import read_arrays, write_arrays
from spoke_agent.cli import group
from spoke_agent.server.offline import batch_inference
from spoke_agent.server.offline.batch_inference import infer_file
from spoke_agent.server.offline.tables import TableInvalid
from spoke_agent.server_api.errors import RequestInvalid, UnknownTarget
from tests.spoke_agent.server.sites import image


@pytest.fixture(autouse=True)
def _polite(monkeypatch):
    monkeypatch.setattr(batch_inference, "_step_back", lambda: None)  # the tests' own process must not stay at low priority


def served(site):
    slot = site.publish(1)
    site.slots(champion=slot)
    from model_formats.runtimes.select import open_session

    return slot, open_session(site.weights(slot))


def test_npz_and_csv_give_the_servers_answers(site, tmp_path):
    _, session = served(site)
    x = image(150, seed=4)
    write_arrays(tmp_path / "rows.npz", {"image": x})
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *(f"p{i}" for i in range(64))])
        writer.writerows([i, *row.ravel().tolist()] for i, row in enumerate(x))
    expected = session.run({"image": x}, ["logits"])[0]
    assert infer_file(site.home, "digits", tmp_path / "rows.npz", tmp_path / "out.npz").rows == 150
    np.testing.assert_allclose(read_arrays(tmp_path / "out.npz", max_bytes=1 << 20)["logits"], expected, rtol=1e-4, atol=1e-5)
    infer_file(site.home, "digits", tmp_path / "rows.csv", tmp_path / "out.csv")
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(r["prediction"]) for r in rows] == expected.argmax(axis=1).tolist()
    assert float(rows[7]["logits_3"]) == pytest.approx(expected[7, 3], rel=1e-3, abs=1e-4)


def test_a_folder_of_arrays(site, tmp_path):
    served(site)
    (tmp_path / "rows").mkdir()
    for i in range(5):
        np.save(tmp_path / "rows" / f"{i}.npy", image(1, seed=i)[0])
    assert infer_file(site.home, "digits", tmp_path / "rows", tmp_path / "out.csv").rows == 5


def test_stopped_in_the_middle_it_goes_on(site, tmp_path, monkeypatch):
    served(site)
    monkeypatch.setattr(batch_inference, "_PART_ROWS", 10)
    write_arrays(tmp_path / "rows.npz", {"image": image(35)})

    def stop(done, rows):
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        infer_file(site.home, "digits", tmp_path / "rows.npz", tmp_path / "out.csv", progress=stop)
    assert not (tmp_path / "out.csv").exists()
    done = infer_file(site.home, "digits", tmp_path / "rows.npz", tmp_path / "out.csv")
    assert (done.rows, done.resumed_rows) == (35, 20)
    assert not list(tmp_path.glob("*.parts"))


def test_parts_of_another_model_are_not_used(site, tmp_path, monkeypatch):
    served(site)
    monkeypatch.setattr(batch_inference, "_PART_ROWS", 10)
    write_arrays(tmp_path / "rows.npz", {"image": image(20)})

    def stop(done, rows):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        infer_file(site.home, "digits", tmp_path / "rows.npz", tmp_path / "out.csv", progress=stop)
    site.slots(champion=site.publish(2))
    assert infer_file(site.home, "digits", tmp_path / "rows.npz", tmp_path / "out.csv").resumed_rows == 0


def test_the_sites_adapter_answers_here_too(site, tmp_path):
    slot, _ = served(site)
    site.slots(champion=slot, adapter=site.adapter(slot, winner=7))
    write_arrays(tmp_path / "rows.npz", {"image": image(8)})
    infer_file(site.home, "digits", tmp_path / "rows.npz", tmp_path / "a.npz")
    assert read_arrays(tmp_path / "a.npz", max_bytes=1 << 20)["prediction"].tolist() == ["7"] * 8
    infer_file(site.home, "digits", tmp_path / "rows.npz", tmp_path / "b.npz", adapter="none")
    assert read_arrays(tmp_path / "b.npz", max_bytes=1 << 20)["prediction"].tolist() != ["7"] * 8


@pytest.mark.parametrize(
    ("arrays", "error", "words"),
    [
        ({"pixels": image(2)}, TableInvalid, "image"),
        ({"image": np.zeros((2, 63), np.float32)}, TableInvalid, "shape"),
        ({"image": np.full((2, 1, 8, 8), 99, np.float32)}, RequestInvalid, "outside"),
    ],
)
def test_a_file_that_does_not_fit_is_named(site, tmp_path, arrays, error, words):
    served(site)
    write_arrays(tmp_path / "rows.npz", arrays)
    with pytest.raises(error, match=words):
        infer_file(site.home, "digits", tmp_path / "rows.npz", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_an_unknown_model_is_named(site, tmp_path):
    write_arrays(tmp_path / "rows.npz", {"image": image(1)})
    with pytest.raises(UnknownTarget, match="digits"):
        infer_file(site.home, "digits", tmp_path / "rows.npz", tmp_path / "out.csv")


def test_the_command_prints_what_it_did(site, tmp_path):
    served(site)
    write_arrays(tmp_path / "rows.npz", {"image": image(3)})
    args = ["--home", str(site.home), "--json", "infer", "--model", "digits", "--input", str(tmp_path / "rows.npz")]
    result = CliRunner().invoke(group, [*args, "--output", str(tmp_path / "out.csv")])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rows"] == 3
