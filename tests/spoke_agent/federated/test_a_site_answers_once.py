"""One site's part in a federated sum, with its real outbox, ledger and rows; the nine others are keys that the CA certified."""

from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest

from provisioning.identity.ca import DeviceCA
from spoke_agent.data.crypto import SITE_KEY, load_site_key
from spoke_agent.data.store import DataStore, RowBatch
from spoke_agent.federated.respondent import Respondent, ZoneMember
from spoke_agent.federated.rounds import Rounds
from spoke_agent.outbox.explain import line
from spoke_agent.outbox.outbox import Outbox
from spoke_agent.outbox.policy import EgressRule
from sync.core.clock import ManualClock
from sync.federated.masks import masked, public_of, total
from sync.protocol import topics
from sync.protocol.egress import EgressRecord, MaskedKey, MaskedSum
from sync.protocol.messages import EgressCeiling
from sync.trust.dsse import seal
from sync.trust.keys import fingerprint, role_signer
from tests.samples.cohort import DIRECTOR, NOW, QUESTION, released, sealed_cohort, site
from tests.samples.tabular import CONTRACT, INDEX, MODEL, VERSION, profile, scores, table

OPTED_IN = "allow: [{kind: masked_sum, consent: dpo-2026-14}]\n"
WANTED = EgressCeiling(kinds=("ops", "masked_key", "masked_sum"))
PACKAGE = SimpleNamespace(
    contract=CONTRACT,
    profile=profile(),
    spec=SimpleNamespace(model=MODEL, version=VERSION, residency=SimpleNamespace(learning="adapter")),
)


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    return DeviceCA.create(tmp_path_factory.mktemp("ca"), now=NOW)


@pytest.fixture(scope="module")
def others(ca):
    return [site(ca, f"site-{i}") for i in range(1, 10)]


class Home:
    """A spoke's home with 300 labelled rows of yesterday."""

    def __init__(self, folder, ca, *, policy=OPTED_IN, regime="gdpr", ceiling=WANTED, rows=300, noise=lambda share: 0):
        self.folder, self.ca, self.me = folder, ca, site(ca, "site-0")
        self.regime, self.ceiling, self.noise, self.now = regime, ceiling, noise, NOW
        folder.mkdir(exist_ok=True)
        if policy is not None:
            (folder / "egress.yaml").write_text(policy)
        self.clock, self.sent = ManualClock(NOW), []
        self.labels = np.arange(rows) % 3
        self.data = DataStore(folder / "data.db", load_site_key(folder), now=lambda: self.now.timestamp())
        if rows:
            self.serve(rows, NOW - timedelta(hours=3))
        self.start()

    def start(self):
        self.outbox = Outbox(
            self.folder,
            self.me.spoke,
            self.regime,
            clock=self.clock,
            send=lambda kind, data: self.sent.append(EgressRecord.parse(data)),
            seal=lambda record: record.canonical(),
            ceiling=lambda: self.ceiling,
        )
        self.part = Respondent(
            ZoneMember(self.me.spoke, "eu", lambda: self.ca.certificate),
            Rounds(self.folder / "federated", load_site_key(self.folder)),
            outbox=self.outbox,
            data=self.data,
            released=lambda: released(self.now),
            package=lambda index: PACKAGE if index == INDEX else None,
            noise=self.noise,
        )

    def serve(self, rows, at):
        rng = np.random.default_rng(5)
        x = table(rows, rng)
        ids = [f"{at:%d%H%M}-{i}" for i in range(rows)]
        self.data.append(RowBatch(MODEL, VERSION, INDEX, ids, np.full(rows, at.timestamp()), {"x": x}, {"y": scores(x, rng)}))
        self.data.label_rows({i: float(c) for i, c in zip(ids, self.labels, strict=True)})

    def hears(self, question=QUESTION, signer=DIRECTOR):
        self.part.hear(topics.question("eu", question.name), seal(question, signer))
        self.part.tick()

    def meets(self, others, question=QUESTION, *, cohort=None):
        data = cohort or sealed_cohort([self.member(question), *(o.member(question) for o in others)], question)
        self.part.hear(topics.cohort("eu", question.name), data)
        self.part.tick()

    def member(self, question=QUESTION):
        key = next(r.body.key for r in self.sent if isinstance(r.body, MaskedKey) and r.body.question == question.digest)
        return self.me.member(question, key=bytes(key))

    @property
    def shares(self):
        return [r.body for r in self.sent if isinstance(r.body, MaskedSum)]

    @property
    def whys(self):
        return [(e.entry.asked, e.entry.why) for e in self.outbox.log.entries()]


def later(question, hours, name):
    """The next question, about the next rows."""
    move = timedelta(hours=hours)
    fields = {f: getattr(question, f) + move for f in ("start", "end", "issued", "closes", "expires")}
    return question.replace(**fields, name=name)


def rest(others, me, own, cohort):
    """The shares of the nine others, whose sums are all zero."""
    keys = {o.spoke: public_of(o.secret) for o in others} | {me: own}
    return [masked([0, 0, 0], o.spoke, o.secret, {s: k for s, k in keys.items() if s != o.spoke}, cohort) for o in others]


def test_a_site_that_opted_in_answers_and_only_the_whole_sum_tells_its_counts(tmp_path, ca, others):
    home = Home(tmp_path, ca)
    home.hears()
    own = bytes(home.sent[0].body.key)
    home.meets(others)
    (share,) = home.shares
    assert share.sites == 10
    assert total([share.values, *rest(others, home.me.spoke, own, share.cohort)]) == (100, 100, 100)
    assert set(share.values).isdisjoint({100})
    assert home.whys == [("masked_key", EgressRule.ALLOWED), ("masked_sum", EgressRule.ALLOWED)]


def test_the_log_tells_in_plain_words_what_happened_and_what_it_cost(tmp_path, ca, others):
    home = Home(tmp_path, ca)
    home.hears()
    home.meets(others)
    key, share = [line(e) for e in home.outbox.log.entries()]
    assert "would take part in a sum" in key
    assert "nothing without the shares of all 9 other sites" in share
    assert [e.entry.epsilon_milli for e in home.outbox.log.entries()] == [0, 1000]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"policy": None}, EgressRule.NOT_IN_SITE_POLICY),
        ({"policy": "allow: [{kind: drift_hist}]"}, EgressRule.NOT_IN_SITE_POLICY),
        ({"policy": "allow: [{kind: masked_sum}]"}, EgressRule.POLICY_UNREADABLE),
        ({"policy": "sovereignty: verdict_only\n" + OPTED_IN}, EgressRule.VERDICT_ONLY),
        ({"policy": "sovereignty: sealed\n" + OPTED_IN}, EgressRule.SEALED),
        ({"regime": "ae-health", "policy": "allow: [{kind: ops}]"}, EgressRule.BELOW_REGIME_FLOOR),
        ({"regime": "ae-cbuae", "policy": "allow: [{kind: ops}]"}, EgressRule.BELOW_REGIME_FLOOR),
        ({"ceiling": EgressCeiling()}, EgressRule.NOT_IN_HUB_CEILING),
        ({"ceiling": None}, EgressRule.NOT_IN_HUB_CEILING),
        ({"rows": 29}, EgressRule.TOO_FEW_ROWS),
        ({"policy": "epsilon_per_day: 0.5\n" + OPTED_IN}, EgressRule.LEDGER_EXHAUSTED),
        ({"policy": "max_bytes_per_day: 100\n" + OPTED_IN}, EgressRule.DAY_FULL),
    ],
)
def test_a_site_that_may_not_says_nothing_not_even_that_it_would(tmp_path, ca, options, why):
    home = Home(tmp_path, ca, **options)
    home.hears()
    home.hears()
    assert home.sent == []
    assert home.whys == [("masked_key", why)]


def test_health_data_cannot_be_opened_by_any_policy(tmp_path, ca):
    home = Home(tmp_path, ca, regime="ae-health", policy=OPTED_IN)
    home.hears()
    assert home.sent == []
    assert home.whys == [("masked_key", EgressRule.POLICY_UNREADABLE)]


def test_the_hub_gets_no_columns_at_all_when_it_asks_for_more_than_the_site_lists(tmp_path, ca):
    home = Home(tmp_path, ca, policy="allow: [{kind: masked_sum, consent: x, features: [c1, c2]}]")
    asked = QUESTION.replace(statistic="feature_moments", features=(1, 2, 3))
    home.hears(asked)
    assert home.whys == [("masked_key", EgressRule.FEATURE_NOT_ALLOWED)]
    home.hears(asked.replace(features=(1, 2), name="fewer"))
    assert home.whys[1:] == [("masked_key", EgressRule.ALLOWED)]


def test_no_row_is_counted_in_a_second_sum_whoever_else_answers_and_whatever_is_asked(tmp_path, ca, others):
    home = Home(tmp_path, ca, policy="epsilon_per_day: 9\nepsilon_per_30_days: 90\n" + OPTED_IN)
    home.hears()
    home.meets(others)
    home.hears(QUESTION.replace(name="again"))
    home.hears(QUESTION.replace(name="other", statistic="feature_counts"))
    sliced = QUESTION.replace(name="slice", start=QUESTION.end - timedelta(hours=4))
    home.hears(sliced)
    assert [why for _, why in home.whys[2:]] == [EgressRule.WINDOW_OVERLAPS] * 3
    home.now += timedelta(hours=24)
    home.clock.advance(86_401)
    home.serve(300, QUESTION.end + timedelta(hours=1))
    home.hears(later(QUESTION, 24, "tomorrow"))
    assert home.whys[-1] == ("masked_key", EgressRule.ALLOWED)


def test_answers_spend_the_ledger_and_an_exhausted_one_ends_them(tmp_path, ca, others):
    home = Home(tmp_path, ca, policy="epsilon_per_day: 1\nepsilon_per_30_days: 1.5\n" + OPTED_IN)
    home.hears()
    home.meets(others)
    home.now += timedelta(hours=24)
    home.clock.advance(86_401)
    home.serve(300, QUESTION.end + timedelta(hours=1))
    home.hears(later(QUESTION, 24, "tomorrow"))
    assert home.whys[-1] == ("masked_key", EgressRule.LEDGER_EXHAUSTED)


def test_a_repeated_cohort_or_another_one_gets_no_second_share(tmp_path, ca, others):
    home = Home(tmp_path, ca)
    home.hears()
    home.meets(others)
    home.meets(others)
    home.meets([*others[:8], site(ca, "site-77")])
    home.start()
    home.hears()
    home.meets(others)
    assert len(home.shares) == 1


def test_nine_sites_get_nothing_and_the_key_is_destroyed(tmp_path, ca, others):
    home = Home(tmp_path, ca)
    home.hears()
    home.meets(others[:8])
    assert home.whys[-1] == ("masked_sum", EgressRule.COHORT_TOO_SMALL)
    home.meets(others)
    assert home.shares == []
    assert b"sealed" not in next((tmp_path / "federated").iterdir()).read_bytes().replace(b'"sealed":null', b"")


def test_a_site_that_the_ca_does_not_know_is_seen_and_told(tmp_path, ca, others):
    home = Home(tmp_path / "home", ca)
    forged = site(DeviceCA.create(tmp_path / "forger", now=NOW), "site-9")
    home.hears()
    home.meets([*others[:8], forged])
    assert home.shares == []
    assert home.whys[-1] == ("masked_sum", EgressRule.COHORT_NOT_CERTIFIED)
    assert "not certified by the device CA" in line(list(home.outbox.log.entries())[-1])


def test_a_cohort_that_the_hub_did_not_sign_changes_nothing(tmp_path, ca, others):
    home = Home(tmp_path, ca)
    home.hears()
    forged = sealed_cohort([home.member(), *(o.member() for o in others)], signer=role_signer())
    home.meets(others, cohort=forged)
    assert home.shares == []
    home.meets(others)
    assert len(home.shares) == 1


def test_a_site_answers_only_beside_peers_that_it_knows_if_it_named_any(tmp_path, ca, others):
    def policy(known):
        listed = ", ".join(f'"{fingerprint(o.certificate)}"' for o in known)
        return f"allow: [{{kind: masked_sum, consent: x, peers: [{listed}]}}]"

    strangers = Home(tmp_path / "a", ca, policy=policy([*others[:6], *(site(ca, f"else-{i}") for i in range(4))]))
    strangers.hears()
    strangers.meets(others)
    assert strangers.shares == []
    assert strangers.whys[-1] == ("masked_sum", EgressRule.PEERS_UNKNOWN)
    friends = Home(tmp_path / "b", ca)
    (tmp_path / "b" / "egress.yaml").write_text(policy([*others, friends.me]))
    friends.hears()
    friends.meets(others)
    assert len(friends.shares) == 1


def test_a_restart_between_key_and_share_loses_nothing(tmp_path, ca, others):
    home = Home(tmp_path, ca)
    home.hears()
    home.start()
    home.meets(others)
    assert len(home.shares) == 1


def test_after_a_power_cut_between_deciding_and_sending_there_is_no_second_share(tmp_path, ca, others, monkeypatch):
    home = Home(tmp_path, ca)
    home.hears()

    def cut(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(home.outbox, "offer_masked", cut)
    with pytest.raises(KeyboardInterrupt):
        home.meets(others)
    home.start()
    home.meets(others)
    assert home.shares == []


def test_a_lost_site_key_ends_the_round_and_nothing_leaves(tmp_path, ca, others):
    home = Home(tmp_path, ca)
    home.hears()
    cohort = sealed_cohort([home.member(), *(o.member() for o in others)])
    (tmp_path / SITE_KEY).write_bytes(bytes(32))
    home.start()
    home.meets(others, cohort=cohort)
    assert home.shares == []


def test_a_policy_that_was_closed_in_between_keeps_the_share_at_home(tmp_path, ca, others):
    home = Home(tmp_path, ca)
    home.hears()
    (tmp_path / "egress.yaml").write_text("sovereignty: sealed\n" + OPTED_IN)
    home.meets(others)
    assert home.shares == []
    assert home.whys[-1] == ("masked_sum", EgressRule.SEALED)


def test_an_old_question_is_not_answered_and_what_is_over_is_forgotten(tmp_path, ca):
    home = Home(tmp_path, ca)
    home.hears()
    assert len(list((tmp_path / "federated").iterdir())) == 1
    home.now = QUESTION.expires
    home.start()
    home.hears()
    assert len(home.sent) == 1
    assert list((tmp_path / "federated").iterdir()) == []


def test_a_question_about_another_package_or_columns_is_passed_over(tmp_path, ca):
    home = Home(tmp_path, ca)
    home.hears(QUESTION.replace(edges=INDEX, name="edges"))
    home.hears(QUESTION.replace(index="sha256:" + "cd" * 32, name="index"))
    home.hears(QUESTION.replace(features=(4000,), statistic="feature_counts", name="columns"))
    home.hears(QUESTION, signer=role_signer())
    assert home.sent == []


def test_the_share_holds_the_noise_that_was_paid_for(tmp_path, ca, others):
    drawn = []
    home = Home(tmp_path, ca, noise=lambda share: drawn.append(share) or 1000)
    home.hears()
    own = bytes(home.sent[0].body.key)
    home.meets(others)
    assert drawn == [1.0, 1.0, 1.0]
    assert total([home.shares[0].values, *rest(others, home.me.spoke, own, home.shares[0].cohort)]) == (1100, 1100, 1100)
