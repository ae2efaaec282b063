"""Whatever the hub says, a site answers only beside ten sites that the device CA knows, each once, each with its own key."""

from datetime import timedelta

import pytest
from msgspec import to_builtins

from model_formats.core.document import DocumentRefused
from provisioning.identity.ca import DeviceCA
from sync.core.types import SpokeId
from sync.federated.documents import Cohort, Member, Question
from sync.federated.masks import fresh_secret, public_of
from sync.federated.verify import CohortRefused, CohortTooSmall, QuestionRefused, verify_cohort, verify_question
from sync.protocol.egress import EgressRecord, Ops
from sync.trust.dsse import seal
from sync.trust.errors import EnvelopeRefused
from sync.trust.keys import device_signer, fingerprint, load_signer, role_signer
from tests.samples.cohort import DIRECTOR, NOW, QUESTION, Site, released, sealed_cohort, site
from tests.samples.tabular import INDEX as DIGEST


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    return DeviceCA.create(tmp_path_factory.mktemp("ca"), now=NOW)


@pytest.fixture(scope="module")
def sites(ca):
    return [site(ca, f"site-{i}") for i in range(10)]


def judge(ca, sites, members, *, question=QUESTION, signer=DIRECTOR, now=NOW):
    me = sites[0]
    return verify_cohort(
        sealed_cohort(members, question, signer), released(now), QUESTION, me.spoke, public_of(me.secret), ca.certificate
    )


def test_ten_certified_sites_are_a_cohort(ca, sites):
    peers = judge(ca, sites, [s.member() for s in sites])
    assert peers.keys == {s.spoke: public_of(s.secret) for s in sites}
    assert peers.fingerprints == {fingerprint(s.certificate) for s in sites}


def test_nine_sites_are_too_few_even_if_the_hub_says_otherwise(ca, sites):
    with pytest.raises(CohortTooSmall, match="9 sites"):
        judge(ca, sites, [s.member() for s in sites[:9]])


def test_more_are_needed_where_the_question_asks_for_more(ca, sites):
    twelve = QUESTION.replace(min_sites=12)
    members = [s.member(twelve) for s in sites]
    data = sealed_cohort(members, twelve)
    with pytest.raises(CohortTooSmall, match="12 are needed"):
        verify_cohort(data, released(), twelve, sites[0].spoke, public_of(sites[0].secret), ca.certificate)


def test_two_spokes_of_one_site_are_not_two_sites(ca, sites):
    twin = site(ca, "site-8/second")
    with pytest.raises(CohortTooSmall, match="only 9 sites"):
        judge(ca, sites, [*(s.member() for s in sites[:9]), twin.member()])


def test_one_key_under_two_names_is_refused(ca, sites):
    with pytest.raises(CohortTooSmall, match="share keys"):
        judge(ca, sites, [*(s.member() for s in sites[:9]), sites[9].member(key=public_of(sites[8].secret))])


def test_a_site_that_another_ca_made_is_refused(ca, sites, tmp_path):
    forged = site(DeviceCA.create(tmp_path / "forger", now=NOW), "site-9")
    with pytest.raises(CohortRefused, match="not certified"):
        judge(ca, sites, [*(s.member() for s in sites[:9]), forged.member()])


def test_a_key_that_its_site_did_not_sign_is_refused(ca, sites):
    swapped = sites[9].member(key=public_of(fresh_secret()), signer=device_signer())
    with pytest.raises(CohortRefused, match="did not sign"):
        judge(ca, sites, [*(s.member() for s in sites[:9]), swapped])


def test_a_certificate_of_one_site_under_the_name_of_another_is_refused(ca, sites):
    with pytest.raises(CohortRefused, match="by another"):
        judge(ca, sites, [*(s.member() for s in sites[:9]), sites[9].member(spoke=SpokeId("site-77"))])


def test_a_key_of_an_earlier_question_is_refused(ca, sites):
    earlier = QUESTION.replace(name="earlier")
    with pytest.raises(CohortRefused, match="another question"):
        judge(ca, sites, [*(s.member() for s in sites[:9]), sites[9].member(earlier)])


def test_another_record_of_the_site_is_no_key(ca, sites):
    at = NOW.replace(minute=0)
    ops = Ops(version=(0, 1, 0), disk_free_percent=1, memory_free_percent=1, uptime_hours=1)
    record = EgressRecord(site="site-9", spoke="main", sequence=1, previous=None, policy=DIGEST, start=at, end=at, body=ops)
    member = Member(certificate=sites[9].certificate.decode(), key=seal(record, sites[9].signer).decode())
    with pytest.raises(CohortRefused, match="holds no key"):
        judge(ca, sites, [*(s.member() for s in sites[:9]), member])


def test_an_expired_certificate_is_refused(ca, sites):
    old = site(ca, "site-9", life=timedelta(hours=1))
    with pytest.raises(CohortRefused, match="not valid now"):
        judge(ca, sites, [*(s.member() for s in sites[:9]), old.member()], now=NOW + timedelta(hours=2))


def test_a_server_or_the_hub_is_no_site(ca, sites, tmp_path):
    for files in (ca.issue_server(tmp_path, ["site-9.main"], now=NOW), ca.issue_client(tmp_path, "hub", now=NOW)):
        fake = Site(SpokeId("site-9"), load_signer(files.key), files.certificate.read_bytes(), fresh_secret())
        with pytest.raises(CohortRefused, match="not a spoke's"):
            judge(ca, sites, [*(s.member() for s in sites[:9]), fake.member()])


def test_a_site_whose_own_key_was_replaced_does_not_answer(ca, sites):
    mine = sites[0].member(key=public_of(fresh_secret()))
    with pytest.raises(CohortRefused, match="with the key it gave"):
        judge(ca, sites, [mine, *(s.member() for s in sites[1:])])
    with pytest.raises(CohortRefused, match="not in the cohort"):
        judge(ca, sites, [*(s.member() for s in sites[1:]), site(ca, "site-10").member()])


def test_only_the_directors_word_counts_and_only_in_time(ca, sites):
    members = [s.member() for s in sites]
    with pytest.raises(EnvelopeRefused):
        judge(ca, sites, members, signer=role_signer())
    with pytest.raises(QuestionRefused):
        judge(ca, sites, members, now=QUESTION.expires)
    with pytest.raises(QuestionRefused):
        judge(ca, sites, members, question=QUESTION.replace(name="another"))


@pytest.mark.parametrize(
    ("signer", "zone", "now", "expired", "error"),
    [
        (DIRECTOR, "eu", NOW, (), None),
        (role_signer(), "eu", NOW, (), EnvelopeRefused),
        (DIRECTOR, "me", NOW, (), QuestionRefused),
        (DIRECTOR, "eu", QUESTION.closes, (), QuestionRefused),
        (DIRECTOR, "eu", NOW - timedelta(hours=1), (), QuestionRefused),
        (DIRECTOR, "eu", NOW, ("timestamp",), QuestionRefused),
    ],
)
def test_a_question_is_the_hubs_for_this_zone_and_open(signer, zone, now, expired, error):
    data = seal(QUESTION, signer)
    if error is None:
        assert verify_question(data, released(now, expired), zone) == QUESTION
    else:
        with pytest.raises(error):
            verify_question(data, released(now, expired), zone)


@pytest.mark.parametrize(
    "changes",
    [
        {"end": NOW + timedelta(hours=1)},
        {"start": NOW},
        {"closes": NOW},
        {"expires": NOW + timedelta(days=31)},
        {"min_sites": 9},
        {"epsilon_milli": 0},
        {"statistic": "rows"},
        {"start": NOW - timedelta(minutes=1)},
        {"filter": "age > 90"},
    ],
)
def test_a_question_outside_the_closed_form_cannot_be_written(changes):
    with pytest.raises(DocumentRefused):
        Question.of_plain(QUESTION.plain | to_builtins(changes))


def test_documents_come_back_from_their_bytes(ca, sites):
    cohort = Cohort(name="ages", question=QUESTION.digest, members=tuple(s.member() for s in sites), issued=NOW)
    assert Question.parse(QUESTION.canonical()) == QUESTION
    assert Cohort.parse(cohort.canonical()) == cohort
