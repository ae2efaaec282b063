"""What has arrived of one model is not litter to another that ends its update meanwhile."""

from model_formats.package import open_package
from spoke_agent.site.slots import read_slots
from sync.protocol.messages import DesiredModel, ProbationTerms
from tests.samples.model_folder import WEIGHTS, packed
from tests.spoke_agent.fakes import SIGNATURE, Rig, TransportClosed


def test_a_commit_beside_a_slow_transfer_takes_nothing_from_it(tmp_path):
    rig = Rig(tmp_path / "spoke", transfer_tries=1000)
    rig.install(1)
    layout, index = packed(tmp_path / "letters", model="letters", version=5)
    layout.put(SIGNATURE)
    rig.hub.layouts[index] = layout
    weights = open_package(layout, index).files[WEIGHTS].digest

    def closed(blob):
        if blob.digest == weights and rig.champion() != 2:
            raise TransportClosed("the road is closed")

    rig.hub.on_fetch = closed
    letters = DesiredModel(model="letters", version=5, index=index, probation=ProbationTerms(soak_s=0))
    rig.controller.follow(rig.directive(rig.desired(1), letters))
    assert rig.store.has(index)
    rig.controller.follow(rig.directive(rig.desired(2, probation=ProbationTerms(soak_s=0)), letters))
    rig.settle()
    models = read_slots(rig.slots).models
    assert (models["digits"].champion.version, models["letters"].champion.version) == (2, 5)
    assert rig.hub.fetched[index] == layout.path(index).stat().st_size, "it was fetched once"
