"""What a deploy may ask for at most: an operator's word on what tenants ask of the host."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from solo_fast.config import NETWORKS, Values
from solo_fast.domain.errors import PermissionDenied
from solo_fast.runtime.spec import Limits

AMOUNTS = (
    "max_memory_bytes",
    "max_processes",
    "max_disk_bytes",
    "cpu",
    "log_lines_per_second",
    "log_burst",
    "mailbox_limit",
    "max_in_flight",
    "max_restarts",
    "startup_timeout_ms",
    "shutdown_timeout_ms",
    "max_seconds",
)
"""What costs the host something. A service's circuit is its own affair."""
ACTIONS = ("memory_action", "cpu_action", "disk_action")

_STRICTER = ("warn", "throttle", "kill")
_ZERO_IS_ALL = frozenset({"cpu", "log_lines_per_second"})
_LESS_IS_WIDER = frozenset({"max_seconds"})  # the restarts within it are counted


def check(config: Values, limits: Limits) -> None:
    """Refuse limits that are wider than a deploy of this tenant may have.

    Raises:
        PermissionDenied: says which, and by which key.
    """
    for name, most in _over(config, limits).items():
        key = "network_ceiling" if name == "network" else "limits_ceiling"
        raise PermissionDenied(
            f"{name} {getattr(limits, name)!r} is more than a deploy may ask for, which is {most!r} here "
            f"(security.{key})"
        )


def capped(config: Values, limits: Limits) -> Limits:
    """The same limits, none of them wider than a deploy of this tenant may have today."""
    return replace(limits, **_over(config, limits))


def _over(config: Values, limits: Limits) -> dict[str, Any]:
    """The limits that are too wide, and what they may be at most."""
    over: dict[str, Any] = {}
    ceiling = config.get("security.network_ceiling")
    if NETWORKS.index(limits.network) > NETWORKS.index(ceiling):
        over["network"] = ceiling
    if config.get("security.limits_ceiling") == "none":
        return over
    for name in (*AMOUNTS, *ACTIONS):
        asked, most = getattr(limits, name), config.get(f"service.{name}")
        if _width(name, asked) > _width(name, most):
            over[name] = most
    return over


def _width(name: str, value: Any) -> float:
    if name in ACTIONS:
        return -_STRICTER.index(value)
    if name in _LESS_IS_WIDER:
        return -float(value)
    return float("inf") if value == 0 and name in _ZERO_IS_ALL else float(value)
