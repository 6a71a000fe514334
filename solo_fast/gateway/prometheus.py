"""The metrics row as Prometheus text (exposition format 0.0.4), for scrapers that ask for it by Accept."""

from __future__ import annotations

from solo_fast.domain.messages import MetricsResponse

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_FAMILIES = (
    ("solo_uptime_seconds", "gauge", "Seconds since the kernel started.", lambda m: m.uptime_ms / 1000),
    ("solo_services", "gauge", "Services that are deployed.", lambda m: m.services),
    ("solo_processes", "gauge", "The kernel, its zygote and its children.", lambda m: m.process_count),
    ("solo_events_total", "counter", "Events recorded.", lambda m: m.events),
    ("solo_calls_total", "counter", "Calls answered by services.", lambda m: m.calls),
    ("solo_in_flight", "gauge", "Requests in flight.", lambda m: m.in_flight),
    ("solo_read_only", "gauge", "1 while the store can't be written.", lambda m: int(m.read_only)),
    ("solo_watchers", "gauge", "Open watch and log streams.", lambda m: m.watchers),
    ("solo_breakers_open", "gauge", "Services whose circuit is open or half open.", lambda m: m.breakers_open),
    ("solo_threads", "gauge", "Threads of the kernel.", lambda m: m.threads),
    (
        "solo_loop_lag_seconds",
        "gauge",
        "How late the event loop was, last second.",
        lambda m: m.loop_lag_ms / 1000,
    ),
    ("process_open_fds", "gauge", "Open descriptors of the kernel.", lambda m: m.descriptors),
    ("process_resident_memory_bytes", "gauge", "Resident memory of the kernel.", lambda m: int(m.memory_mb * 2**20)),
)


def prometheus_text(metrics: MetricsResponse) -> bytes:
    """One family a figure; `solo_info` has version and status as labels, what was shed tenant, class and reason."""
    lines = [
        "# HELP solo_info Which kernel this is.",
        "# TYPE solo_info gauge",
        f'solo_info{{version="{metrics.version}",status="{metrics.status}"}} 1',
    ]
    for name, kind, text, value in _FAMILIES:
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name} {value(metrics)}"]
    lines += ["# HELP solo_shed_total Requests refused by the load shedder.", "# TYPE solo_shed_total counter"]
    lines += [
        f'solo_shed_total{{tenant="{shed.tenant}",class="{shed.admission}",reason="{shed.reason}"}} {shed.count}'
        for shed in metrics.shed_by  # ids and our own words: nothing to escape
    ]
    return ("\n".join(lines) + "\n").encode()
