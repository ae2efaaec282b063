from hub.rules.rollout_plan import GateTerms, Ring, RolloutSpec
from hub.simulate.run import share_rings, simulate
from hub.simulate.spokes import SimulatedFleet
from sync.protocol.messages import ProbationTerms

RINGS = (Ring(name="canary", sites=("a",)), Ring(name="early", sites=("b",)), Ring(name="rest", sites=("*",)))
SIZES = [20, 180, 1800]


def spec(**gate):
    given = {"min_committed": 10, "wilson_lower": 0.7, "max_missing": 0.3, "soak_s": 600, **gate}
    return RolloutSpec(model="digits@2", rings=RINGS, gate=GateTerms(**given), probation=ProbationTerms(soak_s=600))


def test_a_good_version_reaches_everyone():
    outcome = simulate(spec(), SIZES, SimulatedFleet())
    assert (outcome.state, outcome.rings_passed) == ("completed", 3)
    assert outcome.exposed > 0.7


def test_a_version_five_points_worse_is_stopped_before_the_last_ring():
    bad = SimulatedFleet(loss={f"region-{n}": 0.05 for n in range(10)})
    outcomes = [simulate(spec(), SIZES, bad, seed=seed) for seed in range(3)]
    assert all(o.state == "aborted" for o in outcomes)
    assert max(o.exposed for o in outcomes) <= 0.1


def test_a_worthless_version_is_stopped_in_the_canary():
    outcome = simulate(spec(), SIZES, SimulatedFleet(loss={f"region-{n}": 0.5 for n in range(10)}))
    assert outcome.state == "aborted"
    assert outcome.exposed <= 0.01


def test_a_fleet_that_sleeps_is_waited_for_and_a_person_is_asked():
    outcome = simulate(spec(deadline_s=3600, max_missing=0.0), SIZES, SimulatedFleet(away=0.9, away_for_s=1e6))
    assert outcome.state == "paused"
    assert "deadline" in outcome.why


def test_the_same_seed_is_the_same_run():
    assert simulate(spec(), [5, 5, 20], SimulatedFleet(), seed=7) == simulate(spec(), [5, 5, 20], SimulatedFleet(), seed=7)


def test_named_sites_are_single_spokes_and_a_star_takes_the_rest():
    assert share_rings(spec(), 1000) == [1, 1, 998]
