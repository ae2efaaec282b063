"""One line for each answer when asked for, and nothing of what was in it; how long requests waited."""

import json
import logging

from tests.spoke_agent.server.test_requests import body


def lines(caplog):
    return [json.loads(r.getMessage()) for r in caplog.records if r.name == "spoke.access"]


def test_each_answer_is_one_line(site, run, caplog):
    caplog.set_level(logging.INFO, "spoke.access")
    site.slots(champion=site.publish(1))
    running = run(site, access_log=True)
    running.infer(body(id="secret-7"))
    running.http.get("/v2/models/nothing?token=abc")
    first, second = lines(caplog)
    assert (first["method"], first["path"], first["status"]) == ("POST", "/v2/models/digits/infer", 200)
    assert first["client"].startswith("127.0.0.1:")
    assert first["bytes_in"] > 0
    assert first["bytes_out"] > 0
    assert first["ms"] >= 0
    assert (second["path"], second["status"]) == ("/v2/models/nothing", 404)
    assert "secret-7" not in caplog.text
    assert "abc" not in str(lines(caplog))


def test_it_is_off_unless_asked_for(site, run, caplog):
    caplog.set_level(logging.INFO, "spoke.access")
    run(site).http.get("/v2/health/live")
    assert lines(caplog) == []


def test_the_wait_in_the_queue_is_measured(site, run):
    site.slots(champion=site.publish(1))
    running = run(site)
    running.infer(body())
    page = running.http.get("/metrics").text
    assert 'spoke_queue_seconds_count{model="digits",version="1",role="answering"} 1' in page
