from hub.rules.rollout_plan import Ring
from hub.rules.targeting import Forbidden, TargetSpoke, resolve
from sync.core.types import Reason, SpokeId

DUBAI, CLINIC, FRANKFURT = SpokeId("dubai"), SpokeId("clinic"), SpokeId("frankfurt")
TILL = SpokeId("dubai", "till")
FLEET = [TargetSpoke(DUBAI, "me", "ae-pdpl"), TargetSpoke(TILL, "me", "ae-pdpl"), TargetSpoke(CLINIC, "me", "ae-health"),
         TargetSpoke(FRANKFURT, "eu", "gdpr")]  # fmt: skip


def test_a_site_means_all_its_spokes_and_a_spoke_only_itself():
    found = resolve([Ring(name="a", sites=("dubai/till",)), Ring(name="b", sites=("dubai",))], FLEET, ["me", "eu"])
    assert found.rings == ((TILL,), (DUBAI,))


def test_a_star_takes_the_rest_even_when_written_first():
    found = resolve([Ring(name="a", sites=("*",)), Ring(name="b", sites=("clinic",))], FLEET, ["me", "eu"])
    assert found.rings == ((DUBAI, TILL, FRANKFURT), (CLINIC,))


def test_a_named_spoke_outside_the_package_zones_is_forbidden_and_a_star_passes_it_by():
    found = resolve([Ring(name="a", sites=("frankfurt",)), Ring(name="b", sites=("*",))], FLEET, ["me"], ["ae-pdpl"])
    assert found.forbidden == (Forbidden(FRANKFURT, Reason.ZONE_FORBIDDEN),)
    assert found.rings == ((), (DUBAI, TILL))


def test_no_labels_means_nowhere():
    assert resolve([Ring(name="a", sites=("*",))], FLEET, []).rings == ((),)
    assert resolve([Ring(name="a", sites=("*",))], FLEET, ["me"], []).rings == ((),)


def test_a_site_nobody_knows_is_named():
    assert resolve([Ring(name="a", sites=("paris", "dubai"))], FLEET, ["me"]).unknown == ("paris",)


def test_selectors_narrow_a_ring():
    found = resolve([Ring(name="a", sites=("*",), regimes=("ae-health",))], FLEET, ["me", "eu"])
    assert found.rings == ((CLINIC,),)
