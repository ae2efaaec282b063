import pytest

from hub.services.enrolments import admit_spoke, invite_spoke
from provisioning.identity.enrol import CodeRefused, begin, finish
from sync.core.types import SpokeId


def test_the_same_request_is_answered_again_and_another_is_refused(house, tmp_path):
    code = invite_spoke(house.hub, SpokeId("dubai"), "me", "ae-pdpl", "ann")
    request = begin(tmp_path / "spoke", code)
    admit_spoke(house.hub, request)
    assert finish(tmp_path / "spoke", admit_spoke(house.hub, request)).zone == "me"
    with pytest.raises(CodeRefused, match="used before"):
        admit_spoke(house.hub, begin(tmp_path / "other", code))
