from pathlib import Path

import pytest

from spoke_agent.site.home import SpokeHome
from spoke_agent.site.settings import SpokeSettingsInvalid, load_settings


@pytest.mark.parametrize(("word", "meant"), [("yes", True), ("On", True), ("1", True), ("TRUE", True), ("no", False)])
def test_switches_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, meant: bool):
    monkeypatch.setenv("SPOKE_TUNE_ON_DRIFT", word)
    monkeypatch.setenv("SPOKE_SERVE_PORT", "8000")
    monkeypatch.setenv("SPOKE_TICK_S", "0.25")
    found = load_settings(SpokeHome(tmp_path))
    assert (found.tune_on_drift, found.serve_port, found.tick_s) == (meant, 8000, 0.25)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tune_on_drift = 'perhaps'", "tune_on_drift"),
        ("tick_s = nan", "tick_s"),
        ("tune_every_hours = inf", "tune_every_hours: must be a finite number"),
        ("timezone = 2026-01-01", "timezone: date has no place"),
        ("transport = 'pigeon'", "transport: Invalid enum value 'pigeon'; must be auto, https, mqtt"),
        ("tick = 1", "tick: unknown field"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path: Path, text: str, said: str):
    (tmp_path / "spoke.toml").write_text(text)
    with pytest.raises(SpokeSettingsInvalid) as refused:
        load_settings(SpokeHome(tmp_path))
    assert said in refused.value.message
