"""`hub federated` against a running hub: ask, list, show, and what is refused."""

import pytest

from hub.app.hub_process import HubServer
from hub.config.settings import HubSettings
from tests.samples.adaptable import write_adaptable


@pytest.mark.mosquitto
def test_a_question_is_put_listed_and_shown_and_ends_when_too_few_join(home, line, tmp_path, eventually):
    with HubServer(home, HubSettings(tick_s=0.2, federated=True)):
        line.ok("model", "publish", write_adaptable(tmp_path / "digits"))
        asked = ("federated", "ask", "--model", "digits@1", "--zone", "eu", "--gather", "1", "--name", "brightness")
        made = line.ok(*asked, "--statistic", "feature_moments", "--feature", "image.mean", "--feature", "image.std")
        assert (made["state"], made["features"], made["epsilon"], made["min_sites"]) == ("gathering", [0, 1], 1.0, 10)
        assert [q["name"] for q in line.ok("federated", "list")] == ["brightness"]
        eventually(lambda: line.ok("federated", "show", "brightness")["state"] == "too_few")
        assert "nothing was added up" in line("federated", "show", "brightness", as_json=False)[1]
        assert "too_few" in line("federated", "list", as_json=False)[1]
        for wrong, code in (
            (("--statistic", "feature_moments", "--feature", "salary"), "question_invalid"),
            (("--statistic", "label_counts", "--feature", "image.mean"), "sums_invalid"),
        ):
            status, _, error = line("federated", "ask", "--model", "digits@1", "--zone", "eu", *wrong)
            assert (status, code in error) == (2, True)
        assert "not_found" in line("federated", "show", "nothing")[2]
