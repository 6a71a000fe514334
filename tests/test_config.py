"""Configuration: what is read from where, and what is refused how."""

from __future__ import annotations

import json

import pytest

from solo_fast.config import KEYS, Config, ConfigError, example
from tests.harness import ROOT


def load(tmp_path, text: str = "", name: str = "solo.toml", environ=None, flags=None) -> Config:
    path = tmp_path / name
    path.write_text(text)
    return Config.load(str(path), environ=environ or {}, flags=flags)


def test_the_example_is_the_table():
    assert (ROOT / "config.example.toml").read_text() == example()


def test_the_example_loads_and_says_the_defaults():
    config = Config.load(str(ROOT / "config.example.toml"), environ={})
    assert {key.name: config.get(key.name) for key in KEYS} == {key.name: key.default for key in KEYS}


def test_flags_win_over_variables_over_the_file_over_defaults(tmp_path):
    text = "[limits]\nmax_total = 1\nmax_per_tenant = 1\nburst = 1\n"
    environ = {"SOLO_LIMITS_MAX_TOTAL": "2", "SOLO_LIMITS_MAX_PER_TENANT": "2"}
    config = load(tmp_path, text, environ=environ, flags={"limits.max_total": 3})
    names = ("max_total", "max_per_tenant", "burst", "rate_per_tenant")
    assert [config.get(f"limits.{name}") for name in names] == [3, 2, 1, 0]


def test_json_says_the_same(tmp_path):
    config = load(tmp_path, json.dumps({"solo": {"http_port": 0}, "tenants": {"a": {"max_restarts": 1}}}), "solo.json")
    assert config.get("solo.http_port") == 0
    assert config.for_tenant("a").get("service.max_restarts") == 1


def test_the_file_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Config.load(environ={}).file == ""
    (tmp_path / "solo.toml").write_text("[solo]\nhttp_port = 1\n")
    assert Config.load(environ={}).get("solo.http_port") == 1
    (tmp_path / "other.toml").write_text("[solo]\nhttp_port = 2\n")
    environ = {"SOLO_CONFIG": str(tmp_path / "other.toml")}
    assert Config.load(environ=environ).get("solo.http_port") == 2
    assert Config.load(str(tmp_path / "solo.toml"), environ=environ).get("solo.http_port") == 1


def test_a_tenant_has_its_own_over_everything(tmp_path):
    config = load(tmp_path, "[service]\nmax_restarts = 2\n[tenants.acme]\nmax_restarts = 9\n")
    assert config.for_tenant("acme").get("service.max_restarts") == 9
    assert config.for_tenant("acme").get("service.max_seconds") == 60
    assert config.for_tenant("other").get("service.max_restarts") == 2
    assert config.tenants() == ["acme"]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[limits]\n\nmax_totall = 3\n", 3, "did you mean max_total?"),
        ("[lmits]\nmax_total = 3\n", 1, "did you mean limits?"),
        ('[limits]\nmax_total = "many"\n', 2, "a whole number"),
        ("[limits]\nmax_total = true\n", 2, "a whole number"),
        ("[limits]\nmax_total = 0\n", 2, "from 1"),
        ("[limits]\nring_events = 1000\n", 2, "a power of two"),
        ('[solo]\nlog_level = "loud"\n', 2, "debug, info"),
        ("[solo]\nhost = 5\n", 2, "a string"),
        ("limits = 3\n", 1, "is a section"),
        ("[tenants.acme]\nmax_restart = 3\n", 2, "did you mean max_restarts?"),
        ("[tenants.acme]\nmax_restarts = 'x'\n", 2, "tenants.acme.max_restarts"),
        ("[tenants.acme.limits]\nmax_restarts = 3\n", 1, "put its keys right below it"),
        ("\n[tenants.'a b']\nmax_restarts = 3\n", 2, "contains ' '"),
        ('[tenants.b]\ncpu = 1\n[tenants.a]\ncpu = "x"\n', 4, "tenants.a.cpu"),
        ('[tenants.big-corp]\ncpu = 1\n[tenants.corp]\ncpu = "x"\n', 4, "tenants.corp.cpu"),
        ('[tenants.limits]\nburst = 1\n[limits]\nburst = "x"\n', 4, "limits.burst"),
        ('[tenants.b]\ncpu = 1\n[tenants.cpu]\ncpu = "x"\n', 4, "tenants.cpu.cpu"),
        ("[limits\n", 1, "not TOML"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(tmp_path, text, line, words):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert f"solo.toml:{line}: " in caught.value.message
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "an object"),
        ('{"limits": {"max_totl": 1}}', ":1: "),
        ('{\n "solo": {\n  "http_prt": 3\n }\n}', "solo.json:3: .* did you mean http_port"),
        ('{"tenants": {"/x": {}}}', "solo.json:1: a tenant's name starts with '/'"),
    ],
)
def test_json_that_is_wrong(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words):
        load(tmp_path, text, "solo.json")


def test_variables_that_are_wrong():
    for environ, words in (
        ({"SOLO_LIMITS_MAX_TOTALL": "3"}, "SOLO_LIMITS_MAX_TOTAL"),
        ({"SOLO_LIMITS_MAX_TOTAL": "many"}, "a whole number"),
    ):
        with pytest.raises(ConfigError, match=words):
            Config.load(environ=environ)
    Config.load(environ={"SOLO_TENANT": "x", "SOLO_HOST": "y", "SOLO_HTTP_PORT": "z", "SOLO_CACHE_DIR": "/x"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[solo]\nhost = "0.0.0.0"\n', "trusts every caller"),
        ('[security]\nauth = "token"\n', "does not offer yet"),
        ("[limits]\nmax_frame_bytes = 65536\n", "larger than"),
        ('[database]\nevents_db = "../x"\n', "without a slash"),
        ('[security]\nprogram_paths = "/usr, bin"\n', "security.program_paths: 'bin' is no absolute path"),
    ],
)
def test_contradictions(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words):
        load(tmp_path, text)


def test_a_missing_or_unreadable_file(tmp_path):
    with pytest.raises(ConfigError, match="can't be read"):
        Config.load(str(tmp_path / "none.toml"), environ={})
    (tmp_path / "bad.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        Config.load(str(tmp_path / "bad.toml"), environ={})


def test_set_changes_what_can_change_live(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("solo_fast.config.time.monotonic", lambda: clock[0])
    config = Config.default()
    config.set("service.max_restarts", 7)
    assert config.get("service.max_restarts") == 7
    config.set("service.max_restarts", 1, ttl_s=10)
    assert config.get("service.max_restarts") == 1
    clock[0] += 10
    assert config.get("service.max_restarts") == 7
    for name, value, words in (
        ("service.max_restarts", -1, "goes from"),
        ("solo.http_port", 1, "while the kernel runs"),
        ("service.max_restart", 1, "did you mean"),
    ):
        with pytest.raises(ConfigError, match=words):
            config.set(name, value)
