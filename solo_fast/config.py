"""Configuration: one table of keys, from which files, variables and flags are read, checked and merged.

A file (TOML or JSON) is named by --config, else SOLO_CONFIG, else ./solo.toml where there is one. Each key is also a
variable, SOLO_SECTION_KEY. Flags win over variables, variables over the file, the file over the defaults. Whatever is
unknown or of the wrong type is refused, with its place and the nearest key that exists.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import os
import re
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from solo_fast.domain.errors import InvalidRequest
from solo_fast.domain.ids import check_id
from solo_fast.domain.layers import LAYERS

MIB = 1 << 20
DEFAULT_FILE = "solo.toml"
NETWORKS = ("none", "loopback", "all")
"""Network policies, each reaching more than the one before."""
UID_LEAST, UID_MOST = 1000, 2**32 - 3


class ConfigError(InvalidRequest):
    """The configuration can't be used; the message names file, line, key and the remedy."""


@dataclass(frozen=True, slots=True)
class Key:
    """One configuration key.

    Attributes:
        name: section.key.
        least, most: bounds of a number.
        choices: of a string; empty for any.
        live: whether a change takes effect without a restart.
        per_tenant: whether [tenants.NAME] may set it, by the key's own name; there every change is live.
    """

    name: str
    default: Any
    about: str
    least: int = 0
    most: int = 2**31 - 1
    choices: tuple[str, ...] = ()
    live: bool = False
    per_tenant: bool = False


KEYS: tuple[Key, ...] = (
    Key("solo.host", "127.0.0.1", "address that both gateways listen on; loopback only while security.auth is open"),
    Key("solo.listen_port", 50051, "gRPC port; 0 picks a free one", most=65535),
    Key("solo.http_port", 8080, "REST port; 0 picks a free one", most=65535),
    Key("solo.data_dir", "./data", "where everything that must survive is kept"),
    Key("solo.max_tenants", 100, "tenants that may have services at the same time", least=1, live=True),
    Key("solo.log_level", "info", "what the kernel's own log shows", choices=("debug", "info", "warning", "error")),
    Key("solo.log_format", "text", "the kernel's own log: lines for people, or a JSON object a line",
        choices=("text", "json")),
    Key("solo.heartbeat_seconds", 15, "how often a quiet watch or log stream shows that it lives", least=1, most=3600),
    Key("limits.max_per_tenant", 100, "requests in flight of one tenant", least=1, per_tenant=True),
    Key("limits.max_total", 1000, "requests in flight of all tenants", least=1),
    Key("limits.rate_per_tenant", 0, "requests a second of one tenant; 0 sets no rate", per_tenant=True),
    Key("limits.burst", 0, "requests that a tenant may send at once under its rate; 0 means as many as the rate",
        per_tenant=True),
    Key("limits.adaptive", False, "also limit each class of requests by how its latency develops"),
    Key("limits.max_request_bytes", 8 * MIB, "a request's body", least=1024),
    Key("limits.max_source_bytes", MIB, "a service's source", least=1, live=True),
    Key("limits.max_result_bytes", 8 * MIB, "a call's result", least=1024),
    Key("limits.max_frame_bytes", 16 * MIB, "one frame from a service to the kernel", least=65536),
    Key("limits.max_state_bytes", 8 * MIB, "a service's state, handed over or saved; a frame is the most it can be",
        least=1024),
    Key("limits.services_per_tenant", 1000, "services of one tenant", live=True, per_tenant=True, least=1),
    Key("limits.registrations_per_tenant", 10_000, "registrations of one tenant", live=True, per_tenant=True, least=1),
    Key("limits.watchers_per_tenant", 100, "open watch and log streams of one tenant", live=True, per_tenant=True,
        least=1),
    Key("limits.watchers_total", 10_000, "open watch and log streams of all tenants", live=True, least=1),
    Key("limits.ring_events", 65_536, "events kept in memory for watchers; a power of two", least=16, most=2**24),
    Key("limits.ring_bytes", 64 * MIB, "bytes those events may take; who lags behind reads the store", least=65536),
    Key("limits.log_line_bytes", 65_536, "a log line; a longer one comes in pieces", least=80),
    Key("limits.log_store_bytes", 4 * MIB, "log lines kept of one service", least=4096),
    Key("limits.event_payload_bytes", 65_536, "payload of an event that a service emits", least=64, live=True),
    Key("limits.metadata_entries", 64, "entries of a metadata map", live=True),
    Key("limits.metadata_length", 256, "characters of a metadata key or value", least=1, live=True),
    Key("security.auth", "open", "who a caller is: open trusts the x-tenant-id header, and is for loopback only",
        choices=("open", "token", "mtls")),
    Key("security.code_check", "warn", "what the static check does to a deploy: off does not look, warn tells what it "
        "found, deny refuses a source with errors", choices=("off", "warn", "deny"), live=True, per_tenant=True),
    Key("security.sandbox", "on", "off runs services unconfined, as the kernel's own user; for finding out what breaks",
        choices=("on", "off")),
    Key("security.require_layers", "", "layers of the sandbox, by comma, without which the kernel does not start;"
        " `solo doctor` lists them"),
    Key("security.uid_range", "200000-265535", "user ids that a kernel of root gives to its services, one each; empty"
        " gives none"),
    Key("security.program_paths", "/usr,/bin,/sbin,/lib,/lib64,/opt,/etc/alternatives",
        "folders, by comma, whose programs and libraries external binaries may execute and read"),
    Key("security.network_ceiling", "loopback", "the most that a deploy may ask for as its network",
        choices=("none", "loopback", "all"), live=True, per_tenant=True),
    Key("security.limits_ceiling", "none", "whether a deploy may ask for wider limits than its tenant's (none: it may;"
        " tenant: for narrower ones only; its circuit is its own)", choices=("none", "tenant"), live=True,
        per_tenant=True),
    Key("database.events_db", "events.db", "name of the event database within data_dir"),
    Key("database.keep_events", 0, "events kept, of all tenants; the oldest are pruned behind a checkpoint; 0: all"),
    Key("database.keep_days", 0, "days that events are kept; 0: for ever", most=36_500),
    Key("service.max_restarts", 5, "restarts of a crashing service within max_seconds before it is given up",
        most=1_000_000, live=True, per_tenant=True),
    Key("service.max_seconds", 60, "the window that max_restarts counts in, seconds", least=1, most=86_400, live=True,
        per_tenant=True),
    Key("service.startup_timeout_ms", 5000, "time that a source has to come up", least=1, most=600_000, live=True,
        per_tenant=True),
    Key("service.shutdown_timeout_ms", 5000, "grace of a service that is ended", most=600_000, live=True,
        per_tenant=True),
    Key("service.mailbox_limit", 10_000, "messages in a service's mailbox", least=1, most=1_000_000, live=True,
        per_tenant=True),
    Key("service.max_in_flight", 1000, "calls in flight of one service", least=1, most=1_000_000, live=True,
        per_tenant=True),
    Key("service.rollback_window_ms", 30_000, "time after a swap in which a crash takes it back; 0: never",
        most=86_400_000, live=True, per_tenant=True),
    Key("service.breaker_failures", 5, "failed calls in a row that open a service's circuit; 0: they don't",
        most=1_000_000, live=True, per_tenant=True),
    Key("service.breaker_open_ms", 30_000, "for how long an open circuit refuses calls", least=1, most=86_400_000,
        live=True, per_tenant=True),
    Key("service.breaker_successes", 2, "calls in a row that must succeed to close a half-open circuit", least=1,
        most=1_000_000, live=True, per_tenant=True),
    Key("service.breaker_probes", 2, "calls that a half-open circuit lets through at the same time", least=1,
        most=1_000_000, live=True, per_tenant=True),
    Key("service.breaker_failure_percent", 0, "percent of failed calls that opens a circuit; 0: none does", most=100,
        live=True, per_tenant=True),
    Key("service.breaker_window_ms", 60_000, "what breaker_failure_percent looks back on", least=10, most=86_400_000,
        live=True, per_tenant=True),
    Key("service.breaker_min_calls", 20, "calls in breaker_window_ms below which there is no percentage", least=1,
        live=True, per_tenant=True),
    Key("service.max_memory_bytes", 256 * MIB, "memory of a service's processes together", least=16 * MIB, most=2**50,
        live=True, per_tenant=True),
    Key("service.max_processes", 64, "processes and threads of a service, itself included", least=1, most=30_000,
        live=True, per_tenant=True),
    Key("service.network", "none", "what a service may reach that does not ask for more: nothing, this host's own"
        " loopback, or everything", choices=("none", "loopback", "all"), live=True, per_tenant=True),
    Key("service.memory_action", "kill", "at max_memory_bytes: end the process; slow it down to a tenth of a core, and"
        " end it at twice the limit; or only say so", choices=("kill", "throttle", "warn"), live=True, per_tenant=True),
    Key("service.warn_percent", 80, "percent of max_memory_bytes and max_disk_bytes at which it is said that a service"
        " comes near; 0: not before", most=100, live=True, per_tenant=True),
    Key("service.cpu", 0, "share of one core, percent; 0: as much as there is", most=100_000, live=True,
        per_tenant=True),
    Key("service.cpu_action", "throttle", "at the share of CPU: hold it to the share; end it, or say so, after some"
        " seconds over it", choices=("kill", "throttle", "warn"), live=True, per_tenant=True),
    Key("service.max_disk_bytes", 256 * MIB, "disk that a service's work directory takes; each file counts 4096 bytes"
        " at least", least=65_536, most=2**50, live=True, per_tenant=True),
    Key("service.disk_action", "kill", "at max_disk_bytes: end the process; slow it down to a tenth of a core; or only"
        " say so", choices=("kill", "throttle", "warn"), live=True, per_tenant=True),
    Key("service.log_lines_per_second", 1000, "log lines of a service, one for each started kilobyte; more are dropped,"
        " and counted; 0 sets no rate", most=1_000_000, live=True, per_tenant=True),
    Key("service.log_burst", 5000, "log lines that may come at once", most=10_000_000, live=True, per_tenant=True),
    Key("service.cgroups", "auto", "whether services are held by cgroups where this kernel may use them, or by sampling"
        " alone", choices=("auto", "off")),
    Key("service.max_open_files", 1024, "open files of each of a service's processes", least=16, most=2**20, live=True,
        per_tenant=True),
    Key("service.max_file_bytes", 1024 * MIB, "the largest file that a service can write", least=4096, most=2**50,
        live=True, per_tenant=True),
    Key("service.warm_pool", 8, "blank processes kept ready for deploys; 0 keeps none", most=1000),
    Key("pressure.memory_bytes", 1024 * MIB, "memory of the kernel itself; at 80% and 90% of this, and of the next"
        " three, there is a runtime_pressure event", least=MIB, most=2**50, live=True),
    Key("pressure.threads", 128, "threads of the kernel itself", least=1, live=True),
    Key("pressure.loop_lag_ms", 500, "how late the kernel's event loop may be", least=1, live=True),
    Key("pressure.children", 4000, "service processes, blank ones included", least=1, live=True),
)  # fmt: skip

_BY_NAME = {key.name: key for key in KEYS}
_SECTIONS = tuple(dict.fromkeys(key.name.split(".")[0] for key in KEYS))
_TENANT_KEYS = {key.name.split(".")[1]: key for key in KEYS if key.per_tenant}


def _nearest(word: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else f"; known are: {', '.join(known)}"


def check(key: Key, value: Any, where: str, shown: str = "") -> Any:
    """`value` if `key` may have it.

    Raises:
        ConfigError: names `where` it stands, and what it should be.
    """
    name = shown or key.name
    wanted = {str: "a string", int: "a whole number", bool: "true or false"}[type(key.default)]
    if type(value) is not type(key.default):
        raise ConfigError(f"{where}: {name} is {value!r}, and should be {wanted}")
    if key.choices and value not in key.choices:
        raise ConfigError(f"{where}: {name} is {value!r}; it is one of {', '.join(key.choices)}")
    if type(value) is int and not key.least <= value <= key.most:
        raise ConfigError(f"{where}: {name} is {value}; it goes from {key.least} to {key.most}")
    if key.name == "limits.ring_events" and value & (value - 1):
        raise ConfigError(f"{where}: {name} is {value}, and should be a power of two")
    return value


# -- files -------------------------------------------------------------------------------------------------------


class _Source:
    """The text of a file, to say on which line a key stands (the parsers do not tell)."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self._lines = text.splitlines()

    def place(self, *keys: str) -> str:
        """`path:line` of the innermost of nested `keys`; the file alone where it can't be found."""
        line, start = 0, 0
        for depth, key in enumerate(keys, 1):
            quoted = re.escape(key)
            member = rf'^\s*(?:[\w"\'.]+\.)?["\']?{quoted}["\']?\s*[=:]|[{{,]\s*"{quoted}"\s*:'
            numbers = range(start, len(self._lines))
            heads = (number for number in numbers if _section(self._lines[number])[:depth] == [*keys[:depth]])
            members = (number for number in numbers if re.search(member, self._lines[number]))
            found = next(heads, next(members, None))
            if found is not None:
                line, start = found + 1, found
        return f"{self.path}:{line}" if line else self.path


def _section(line: str) -> list[str]:
    """The words between the dots of a section's head; none of another line."""
    head = re.match(r"\s*\[+([^\]]*)\]", line)
    words = re.findall(r"""\"([^"]*)"|'([^']*)'|([\w-]+)""", head[1]) if head else []
    return ["".join(word) for word in words]


def _parse(path: str) -> tuple[dict[str, Any], _Source]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}; name another with --config") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (byte {error.start})") from None
    try:
        parsed = json.loads(text) if path.endswith(".json") else tomllib.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        raise ConfigError(f"{path}{':' + line[1] if line else ''}: not TOML: {error}") from None
    if not isinstance(parsed, dict):
        raise ConfigError(f"{path}: a configuration is an object of sections")
    return parsed, _Source(path, text)


def _from_file(path: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Values by key, and by tenant and key."""
    parsed, source = _parse(path)
    values: dict[str, Any] = {}
    tenants: dict[str, dict[str, Any]] = {}
    for section, entries in parsed.items():
        where = source.place(section)
        if section != "tenants" and section not in _SECTIONS:
            raise ConfigError(f"{where}: there is no section {section!r}{_nearest(section, (*_SECTIONS, 'tenants'))}")
        if not isinstance(entries, dict):
            raise ConfigError(f"{where}: {section} is a section, and should hold keys")
        for name, value in entries.items():
            if section == "tenants":
                tenants[name] = _of_tenant(name, value, source)
                continue
            key = _BY_NAME.get(f"{section}.{name}")
            where = source.place(section, name)
            if key is None:
                known = tuple(k.name.split(".")[1] for k in KEYS if k.name.startswith(f"{section}."))
                raise ConfigError(f"{where}: there is no key {section}.{name}{_nearest(name, known)}")
            values[key.name] = check(key, value, where)
    return values, tenants


def _of_tenant(tenant: str, entries: Any, source: _Source) -> dict[str, Any]:
    try:
        check_id("a tenant's name", tenant)
    except InvalidRequest as error:
        raise ConfigError(f"{source.place('tenants', tenant)}: {error.message}") from None
    if not isinstance(entries, dict):
        raise ConfigError(f"{source.place('tenants', tenant)}: tenants.{tenant} is a section, and should hold keys")
    values = {}
    for name, value in entries.items():
        key = _TENANT_KEYS.get(name)
        where = source.place("tenants", tenant, name)
        if isinstance(value, dict):
            raise ConfigError(f"{where}: there are no sections within [tenants.{tenant}]; put its keys right below it")
        if key is None:
            raise ConfigError(f"{where}: a tenant has no key {name!r}{_nearest(name, _TENANT_KEYS)}")
        values[key.name] = check(key, value, where, f"tenants.{tenant}.{name}")
    return values


# -- variables ---------------------------------------------------------------------------------------------------

_OTHER_VARIABLES = frozenset({"SOLO_HOST", "SOLO_HTTP_PORT"})  # the command line's own, not keys of a section


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    by_variable = {f"SOLO_{key.name.replace('.', '_').upper()}": key for key in KEYS}
    prefixes = tuple(f"SOLO_{section.upper()}_" for section in _SECTIONS)
    for variable, text in environ.items():
        key = by_variable.get(variable)
        if key is not None:
            values[key.name] = check(key, _read(key, text), variable)
        elif (
            variable.startswith(prefixes)
            and variable not in _OTHER_VARIABLES
            and not variable.startswith("SOLO_SERVICE_ID")
        ):
            raise ConfigError(f"{variable}: no key has this variable{_nearest(variable, by_variable)}")
    return values


def _read(key: Key, text: str) -> Any:
    """A variable's text as the key's type; the text itself where it is none, for `check` to refuse."""
    if type(key.default) is int:
        return int(text) if re.fullmatch(r"\s*-?\d+\s*", text) else text
    if type(key.default) is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.strip().lower(), text)
    return text


# -- the merged whole --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Config:
    """Merged configuration: `get` the value of a key.

    Attributes:
        file: path of the file that was read; "" for none.
    """

    _values: dict[str, Any] = field(default_factory=dict)
    _tenants: dict[str, dict[str, Any]] = field(default_factory=dict)
    file: str = ""
    _passing: dict[str, tuple[Any, float]] = field(default_factory=dict)  # key -> value, monotonic end
    _again: Callable[[], Config] | None = None  # reads and merges once more what it was made of

    @classmethod
    def load(
        cls,
        path: str | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        flags: Mapping[str, Any] | None = None,
    ) -> Config:
        """Read, merge and validate.

        Args:
            path: what --config named; None looks at SOLO_CONFIG and ./solo.toml.
            environ: variables; None reads the process's own.
            flags: key -> value of the command line.

        Raises:
            ConfigError: something is unknown, of the wrong type, out of range, or contradicts something else.
        """
        environ = os.environ if environ is None else environ
        path = path or environ.get("SOLO_CONFIG") or (DEFAULT_FILE if Path(DEFAULT_FILE).exists() else "")
        values, tenants = _from_file(path) if path else ({}, {})
        values.update(_from_environment(environ))
        for name, value in (flags or {}).items():
            values[name] = check(_BY_NAME[name], value, "the command line")
        config = cls(values, tenants, path)
        config.validate()
        config._again = partial(cls.load, path, environ=environ, flags=flags)
        return config

    @classmethod
    def default(cls) -> Config:
        """Every key at its default."""
        return cls()

    def get(self, name: str) -> Any:
        """The value of a key.

        Raises:
            ConfigError: there is no such key.
        """
        passing = self._passing.get(name)
        if passing is not None:
            if time.monotonic() < passing[1]:
                return passing[0]
            del self._passing[name]
        return self._values[name] if name in self._values else self._key(name).default

    def set(self, name: str, value: Any, ttl_s: float | None = None) -> None:
        """Change a key of the running kernel; with `ttl_s` it falls back after so many seconds.

        Raises:
            ConfigError: there is no such key, or it can't have this value, or a change needs a restart.
        """
        key = self._key(name)
        check(key, value, "set")
        if not key.live:
            raise ConfigError(f"{name} can't change while the kernel runs; set it in the file and restart")
        if ttl_s is None:
            self._values[name] = value
            self._passing.pop(name, None)
        else:
            self._passing[name] = (value, time.monotonic() + ttl_s)

    def says(self, name: str) -> bool:
        """Whether somebody has set a key, rather than its default."""
        return name in self._values

    def reload(self) -> tuple[list[str], list[str]]:
        """Read the file again, and take over what can change while the kernel runs.

        Returns:
            The keys and tenants that changed; and the keys that say something else now, and need a restart.

        Raises:
            ConfigError: as `load`; all is as it was.
        """
        if self._again is None:
            return [], []
        fresh = self._again()
        differing = [key for key in KEYS if fresh.get(key.name) != self._values.get(key.name, key.default)]
        live = [key.name for key in differing if key.live]
        self._values.update({name: fresh.get(name) for name in live})
        names = {*self._tenants, *fresh._tenants}
        tenants = sorted(f"tenants.{name}" for name in names if self._tenants.get(name) != fresh._tenants.get(name))
        self._tenants = fresh._tenants
        return [*live, *tenants], [key.name for key in differing if not key.live]

    @staticmethod
    def _key(name: str) -> Key:
        key = _BY_NAME.get(name)
        if key is None:
            raise ConfigError(f"there is no key {name}{_nearest(name, _BY_NAME)}")
        return key

    def validate(self) -> None:
        """Check what only the whole can tell.

        Raises:
            ConfigError: two keys contradict each other, or a value is not available in this version.
        """
        auth, host = self.get("security.auth"), self.get("solo.host")
        if auth != "open":
            raise ConfigError(
                f"security.auth is {auth!r}, which this version does not offer yet; use open, on loopback only"
            )
        if not _is_loopback(host):
            raise ConfigError(
                f"solo.host is {host!r}, and security.auth open trusts every caller; use 127.0.0.1, ::1 or localhost"
            )
        if self.get("limits.max_frame_bytes") < self.get("limits.max_result_bytes") + 65536:
            raise ConfigError("limits.max_frame_bytes must be larger than limits.max_result_bytes by 65536 at least")
        uid_range(self.get("security.uid_range"))
        program_paths(self.get("security.program_paths"))
        required_layers(self.get("security.require_layers"))
        for view, name in [(self, ""), *((self.for_tenant(tenant), f"tenants.{tenant}: ") for tenant in self._tenants)]:
            network, ceiling = view.get("service.network"), view.get("security.network_ceiling")
            if NETWORKS.index(network) > NETWORKS.index(ceiling):
                raise ConfigError(f"{name}service.network is {network!r}, above security.network_ceiling ({ceiling!r})")
        if "/" in self.get("database.events_db") or not self.get("database.events_db"):
            raise ConfigError("database.events_db is the name of a file within data_dir, without a slash")

    def tenants(self) -> list[str]:
        """The tenants that have a section of their own."""
        return list(self._tenants)

    def for_tenant(self, tenant: str) -> Values:
        """What holds for one tenant: its own section over everything else."""
        own = self._tenants.get(tenant)
        return TenantView(self, own) if own else self


class Values(Protocol):
    """Something to get the value of a key from."""

    def get(self, name: str) -> Any: ...


@dataclass(frozen=True, slots=True)
class TenantView:
    """A tenant's own keys over the configuration."""

    config: Config
    own: dict[str, Any]

    def get(self, name: str) -> Any:
        """As Config.get."""
        return self.own[name] if name in self.own else self.config.get(name)


def uid_range(text: str) -> range:
    """The user ids of security.uid_range; empty where none are to be given out.

    Raises:
        ConfigError: it is not FIRST-LAST, or holds ids that are the system's.
    """
    if not text:
        return range(0)
    found = re.fullmatch(r"(\d{1,10})-(\d{1,10})", text)
    if not found or not UID_LEAST <= int(found[1]) < int(found[2]) <= UID_MOST:
        raise ConfigError(f"security.uid_range is {text!r}; it is FIRST-LAST, within {UID_LEAST}-{UID_MOST}, or empty")
    return range(int(found[1]), int(found[2]) + 1)


def program_paths(text: str) -> list[str]:
    """The folders in security.program_paths.

    Raises:
        ConfigError: one is no absolute path.
    """
    paths = [path.strip() for path in text.split(",") if path.strip()]
    for path in paths:
        if not path.startswith("/"):
            raise ConfigError(f"security.program_paths: {path!r} is no absolute path; name folders from / on, by comma")
    return paths


def required_layers(text: str) -> list[str]:
    """The names in security.require_layers.

    Raises:
        ConfigError: one is no layer.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in LAYERS:
            raise ConfigError(f"security.require_layers: there is no layer {name!r}{_nearest(name, LAYERS)}")
    return names


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def example() -> str:
    """The text of config.example.toml: every key, its default and what it is."""
    lines = ["# Every key of Solo with its default. `solo serve --config solo.toml`; each key is also a variable,"]
    lines += ["# SOLO_SECTION_KEY. Flags win over variables, variables over this file.", ""]
    for section in _SECTIONS:
        lines.append(f"[{section}]")
        for key in KEYS:
            if key.name.startswith(f"{section}."):
                notes = key.about + (f" ({' | '.join(key.choices)})" if key.choices else "")
                lines.append(f"# {notes}")
                lines.append(f"{key.name.split('.')[1]} = {json.dumps(key.default)}")
        lines.append("")
    lines += ["# A tenant's own limits, by the keys' own names:", "# [tenants.acme]", "# max_per_tenant = 20"]
    lines += [f"# May be set: {', '.join(_TENANT_KEYS)}"]
    return "\n".join(lines) + "\n"
