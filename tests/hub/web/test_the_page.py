import base64

import anyio
import httpx
import pytest

from hub.rules.access import Role
from hub.rules.rollout_plan import RolloutPlan
from hub.services import rollout_runner, rollouts
from hub.store.tokens import make_token

SPEC = b"{model: digits@1, rings: [{name: a, sites: [dubai]}]}"
PLAN = b"{apiVersion: spokeshave/v1, kind: Rollout, metadata: {name: r1}, spec: " + SPEC + b"}"


@pytest.fixture
def get(app, house):
    with house.hub.database.begin() as db:
        token = make_token(db, "ann <b>", frozenset({Role.VIEWER}), now=house.hub.now)[1]
    login = {"Authorization": "Basic " + base64.b64encode(f"ann:{token}".encode()).decode()}

    def send(*, logged_in=True):
        async def go():
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://hub") as client:
                return await client.get("/", headers=login if logged_in else {})

        return anyio.run(go)

    return send


def test_an_empty_hub_says_so(get):
    assert "nobody is enrolled yet" in get().text


def test_fleet_and_rollouts_are_shown_and_names_are_escaped(get, house):
    dubai = house.enrol("dubai")
    dubai.status()
    index = house.release(1)
    rollouts.apply(house.hub, RolloutPlan.parse(PLAN), "ann")
    rollout_runner.tick(house.hub)
    dubai.commits(index)
    rollout_runner.tick(house.hub)
    text = get().text
    for words in ("dubai/main", "digits@1 (onnx-int8)", 'class="completed"', "ann &lt;b&gt;"):
        assert words in text
    assert "<script" not in text


def test_a_browser_is_asked_to_log_in(get):
    answer = get(logged_in=False)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic")
