"""Signed outbox records in, the fleet's view out: through ingest's judge, the database, the API and the command's words."""

from datetime import UTC, datetime

import anyio
import httpx
import pytest

from hub.cli.drift import _flat, _show
from hub.rules.access import Role
from hub.rules.egress_residency import judge
from hub.services.ingest import take_egress
from hub.services.package_index import known_package
from hub.store.tokens import make_token
from sync.protocol.egress import DriftHist, DriftVerdict, EgressRecord, FeatureCounts, FeatureVerdict
from sync.trust.dsse import seal
from tests.samples.adaptable import packed_adaptable

AT = datetime(2026, 3, 1, 11, 45, tzinfo=UTC)


@pytest.fixture
def shown(app, house):
    with house.hub.database.begin() as db:
        token = make_token(db, "viewer", frozenset({Role.VIEWER}), now=house.hub.now)[1]

    async def go():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="https://hub") as client:
            return await client.get("/api/v1/drift", headers={"Authorization": f"Bearer {token}"})

    return lambda: anyio.run(go).json()["versions"]


@pytest.fixture
def index(house, tmp_path):
    layout, index = packed_adaptable(tmp_path / "package")
    for blob in (layout.folder / "blobs" / "sha256").iterdir():
        house.hub.registry.put_blob("digits", blob.read_bytes())
    return index


def tell(house, device, index, level, sequence=1, *, edges=None, feature=0, body=None):
    known = known_package(house.hub, index)
    body = body or DriftVerdict(
        edges=edges or known.profile.edges_digest,
        level=level,
        evidence=6 if level == "alarm" else 0,
        budget=8736,
        p=9,
        joint=9,
        windows=1,
        rows=200,
        features=(FeatureVerdict(feature=feature, p=9, direction="up"),) if level == "alarm" else (),
    )
    record = EgressRecord(
        site=device.spoke.site,
        spoke=device.spoke.spoke,
        sequence=sequence,
        previous=None,
        policy=index,
        model="digits",
        version=1,
        index=index,
        start=AT,
        end=AT,
        body=body,
    )
    envelope = seal(record, device.identity.signer())
    return take_egress(house.hub, device.spoke, envelope, judge(lambda i: known_package(house.hub, i)))


def test_one_sites_alarm_is_shown_with_its_feature_and_in_words(house, index, shown, capsys):
    frankfurt, dubai = house.enrol("frankfurt", "eu", "gdpr"), house.enrol("dubai")
    tell(house, frankfurt, index, "alarm")
    tell(house, dubai, index, "quiet")
    (version,) = shown()
    assert version["pattern"] == "one_site"
    assert version["sites"][0]["site"] == "frankfurt"
    assert version["sites"][0]["moved"][0]["feature"] == known_package(house.hub, index).profile.features[0].id
    flat = _flat([version])
    assert [(s["site"], s["alarm"]) for s in flat["sites"]] == [("frankfurt", True), ("dubai", False)]
    _show(flat)
    assert "only frankfurt shows it" in capsys.readouterr().out


def test_a_quarantined_record_is_not_in_the_view(house, index, shown):
    frankfurt = house.enrol("frankfurt", "eu", "gdpr")
    tell(house, frankfurt, index, "alarm", edges="sha256:" + "cd" * 32)
    assert shown() == []


def test_nothing_heard_is_an_empty_view(house, shown, capsys):
    assert shown() == []
    _show(_flat([]))
    assert "no site has said anything yet" in capsys.readouterr().out


def test_what_moved_is_drawn_beside_what_the_model_was_built_on(house, index, shown, capsys):
    profile = known_package(house.hub, index).profile
    feature = profile.features[0]
    counts = [0] * feature.cells
    counts[-2] = 3000  # all in the last cell: brighter than anything
    for site in ("frankfurt", "lyon"):
        device = house.enrol(site, "eu", "gdpr")
        tell(house, device, index, "alarm")
        body = DriftHist(edges=profile.edges_digest, rounded_to=1, features=(FeatureCounts(feature=0, counts=tuple(counts)),))
        tell(house, device, index, "alarm", 3, body=body)
    flat = _flat(shown())
    _show(flat)
    said = capsys.readouterr().out
    assert f"{feature.id} is higher at 2 of 2 sites since Sunday 01 March" in said
    built, now = (next(line for line in said.splitlines() if word in line).split(word)[1] for word in ("built on ", "now      "))
    assert len(built) == feature.cells  # it fits a terminal of 80 columns, unbroken
    assert built.count(" ") < 10
    assert now.strip() == "\u2588"  # all rows stand in one cell
