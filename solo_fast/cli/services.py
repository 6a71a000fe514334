"""Commands about services: deploy, status, list, kill, call, cast, check."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import click

from solo_fast.cli.client import CHANGE_SECONDS, Client, segment
from solo_fast.cli.options import Seconds, json_option, server_options
from solo_fast.cli.output import moment, pairs, print_json, show_diagnostic, show_findings, size, style, table

EXIT_DOES_NOT_COMPILE = 6


def read_source(name: str) -> tuple[str, str]:
    """The text of a file (`-`: standard input), and what to call it.

    Raises:
        click.UsageError: it can't be read, or is not UTF-8.
    """
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise click.UsageError(f"{name} can't be read: {error.strerror}") from None
    try:
        return data.decode("utf-8-sig"), "stdin.py" if name == "-" else Path(name).name
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{name} is not UTF-8 (byte {error.start}); Python source is") from None


def split_pairs(given: tuple[str, ...], option: str) -> dict[str, str]:
    """key=value words as a map.

    Raises:
        click.UsageError: a word has no `=`.
    """
    found = {}
    for word in given:
        name, separator, value = word.partition("=")
        if not separator or not name:
            raise click.UsageError(f"{option} takes key=value, not {word!r}")
        found[name] = value
    return found


def value_of(text: str) -> Any:
    """A word of the command line: JSON where it parses, else the word itself.

    What Python reads beside JSON (NaN, Infinity) and numbers beyond a double stay words: as values, no request could
    carry them.
    """
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError):
        return text


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON's")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


limit_option = click.option(
    "--limit", "limits", multiple=True, metavar="KEY=VALUE", help="A limit, such as max_restarts=3; repeatable."
)
metadata_option = click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="A label; repeatable.")


def service_id_of(file: str, given: str | None) -> str:
    """The id for the source in `file`, where none is `given`: its stem.

    Raises:
        click.UsageError: standard input has none.
    """
    if given is not None:
        return given
    if file == "-":
        raise click.UsageError("source from standard input has no name: give one with --service-id")
    return Path(file).stem


@click.command("deploy")
@click.argument("file", type=click.Path(allow_dash=True))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--exec", "external", is_flag=True, help="FILE and what follows it is a program to run, not source.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="With --exec: a variable; repeatable.")
@click.option("--port", type=int, default=0, help="With --exec: where it will speak HTTP, on loopback.")
@click.option(
    "--socket", default="", metavar="NAME", help="With --exec: the same, a unix socket in its work directory."
)
@click.option("--file", "content", metavar="PATH", help="With --exec: a file that is put into its work directory.")
@click.option("--service-id", help="Id of the service; default: the file's stem.")
@click.option("--replace", is_flag=True, help="Take the place of the service that has the id.")
@limit_option
@metadata_option
@json_option
@server_options
def deploy_command(
    client: Client,
    file: str,
    arguments: tuple[str, ...],
    external: bool,
    env: tuple[str, ...],
    port: int,
    socket: str,
    content: str | None,
    service_id: str | None,
    replace: bool,
    limits: tuple[str, ...],
    metadata: tuple[str, ...],
    as_json: bool,
) -> None:
    """Deploy the service in FILE (`-`: standard input); with --exec, the program FILE with ARGUMENTS.

    Options of the program's own come behind `--`: solo deploy --exec --port 6000 -- /usr/bin/server --quiet
    """
    client.as_json = as_json
    program: dict[str, Any] = {}
    if external:
        code, filename = read_source(content) if content else ("", "")
        argv = [file, *arguments]
        program = {
            "format": "external_binary",
            "argv": argv,
            "port": port,
            "socket": socket,
            "env": split_pairs(env, "--env"),
        }
    elif arguments or env or port or socket or content:
        raise click.UsageError("ARGUMENTS, --env, --port, --socket and --file are for a program: add --exec")
    else:
        code, filename = read_source(file)
    body = {
        "service_id": service_id_of(file, service_id),
        "code": code,
        "replace": replace,
        "filename": filename,
        "limits": {name: value_of(value) for name, value in split_pairs(limits, "--limit").items()},
        "metadata": split_pairs(metadata, "--metadata"),
        **program,
    }
    answer = client.request("POST", "/services", body, timeout_s=CHANGE_SECONDS)
    if as_json:
        print_json(answer)
    else:
        serious = [found for found in answer["findings"] if found["severity"] != "info"]
        show_findings(serious, len(serious) + answer["findings_total"] - len(answer["findings"]), error=True)
        click.echo(answer["message"])


def _state(entry: dict[str, Any]) -> str:
    colour = {"running": "green", "gave_up": "red"}.get(entry["status"], "yellow")
    return entry["status"] if not sys.stdout.isatty() else style(entry["status"], fg=colour)


def _print_list(answer: dict[str, Any]) -> None:
    heads = ("SERVICE", "STATUS", "MEMORY", "MAILBOX", "CPU", "CREATED")
    rows = []
    for entry in answer["services"]:
        figures = entry["metadata"]
        cpu = f"{figures['reductions'] / 1e6:.2f} s"
        memory, mailbox = size(figures["memory_bytes"]), figures["message_queue_len"]
        rows.append((entry["service_id"], entry["status"], memory, mailbox, cpu, moment(entry["created_at"])))
    table(heads, rows)
    if answer.get("next"):
        click.echo(f"{len(rows)} of {answer['total']}; `solo list --after {answer['next']}` shows more")


@click.command("list")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="Entries to show.")
@click.option("--offset", type=click.IntRange(0), default=0, help="Entries to skip.")
@click.option("--after", default="", help="Start behind this service id.")
@click.option(
    "--status",
    type=click.Choice(["starting", "running", "swapping", "restarting", "gave_up"]),
    help="Only in this status.",
)
@json_option
@server_options
def list_command(client: Client, limit: int, offset: int, after: str, status: str | None, as_json: bool) -> None:
    """List the tenant's services."""
    client.as_json = as_json
    query = {"limit": limit, "offset": offset, "after": after, "status": status}
    answer = client.request("GET", "/services", query=query)
    if as_json:
        print_json(answer)
    else:
        _print_list(answer)


@click.command("status")
@click.argument("service", required=False, metavar="[ID]")
@click.option("--service-id", help="The same as ID.")
@json_option
@server_options
def status_command(client: Client, service: str | None, service_id: str | None, as_json: bool) -> None:
    """Show service ID with its figures and recent events; all services where no ID is given."""
    client.as_json = as_json
    if service and service_id and service != service_id:
        raise click.UsageError(f"ID is {service!r} and --service-id is {service_id!r}: give one")
    name = service_id if service is None else service
    answer = client.request("GET", "/services" if name is None else f"/services/{segment(name)}")
    if as_json:
        print_json(answer)
    elif name:
        _print_status(answer)
    else:
        _print_list(answer)


def _usage(usage: dict[str, Any], limits: dict[str, Any]) -> list[tuple[str, str]]:
    """What it uses of what it may, as of the last look at it; nothing while no process of it runs."""
    if not usage["held_by"]:
        return []
    of_disk, of_processes = size(limits["max_disk_bytes"]), limits["max_processes"]
    return [
        ("all memory", f"{size(usage['memory_bytes'])} of {size(limits['max_memory_bytes'])}, by {usage['held_by']}"),
        ("processes", f"{usage['processes']} of {of_processes}"),
        ("disk", f"{size(usage['disk_bytes'])} of {of_disk}"),
        *([("throttled for", ", ".join(usage["throttled"]))] if usage["throttled"] else []),
    ]


def _print_status(entry: dict[str, Any]) -> None:
    pairs(
        [
            ("service", entry["service_id"]),
            ("status", _state(entry)),
            ("version", entry["version"]),
            ("restarts", entry["restarts"]),
            ("circuit", entry["circuit"]),
            ("memory", size(entry["memory_bytes"])),
            ("mailbox", entry["message_queue_len"]),
            ("cpu", f"{entry['reductions'] / 1e6:.3f} s"),
            *_usage(entry["usage"], entry["limits"]),
            ("created", moment(entry["created_at"])),
            ("changed", moment(entry["updated_at"])),
            ("network", entry["network"]),
            ("sandbox", ", ".join(entry["sandbox"]) or "off: it is not confined"),
            *(((f"label {name}"), value) for name, value in entry["labels"].items()),
        ]
    )
    if entry["recent_events"]:
        click.echo()
        table(
            ("EVENT", "TIME", "TYPE"),
            [(e["id"], moment(e["timestamp"]), e["event_type"]) for e in entry["recent_events"]],
        )


@click.command("kill")
@click.argument("service", metavar="ID")
@click.option("--force", is_flag=True, help="SIGKILL at once.")
@click.option("--grace", type=Seconds(0, 600), metavar="SECONDS", help="Time to end by itself.")
@json_option
@server_options
def kill_command(client: Client, service: str, force: bool, grace: float | None, as_json: bool) -> None:
    """End service ID and forget it."""
    client.as_json = as_json
    grace_ms = None if grace is None else round(grace * 1000)
    query = {"force": force, "grace_ms": grace_ms}
    answer = client.request("DELETE", f"/services/{segment(service)}", query=query, timeout_s=CHANGE_SECONDS)
    if as_json:
        print_json(answer)
    else:
        click.echo(answer["message"])


def _arguments(words: tuple[str, ...], given: str | None) -> bytes:
    if given is not None and words:
        raise click.UsageError("give arguments as key=value words or by --args, not both")
    if given is None:
        return json.dumps({name: value_of(text) for name, text in split_pairs(words, "an argument").items()}).encode()
    try:
        json.loads(given, parse_constant=_no_number)
        return given.encode()
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"--args is not JSON: {error}") from None


_words = click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
_args = click.option("--args", "given", metavar="JSON", help="Arguments as a JSON object, or an array by position.")


@click.command("call")
@click.argument("service", metavar="ID")
@click.argument("method")
@_words
@_args
@click.option("--timeout", type=Seconds(0.001, 86_400), default=30.0, show_default=True, metavar="SECONDS")
@json_option
@server_options
def call_command(
    client: Client, service: str, method: str, words: tuple[str, ...], given: str | None, timeout: float, as_json: bool
) -> None:
    """Call METHOD of service ID and print its result. Values are read as JSON where they parse."""
    client.as_json = as_json
    answer = client.request(
        "POST",
        f"/services/{segment(service)}/call/{segment(method)}",
        _arguments(words, given),
        headers={"x-timeout-ms": str(max(1, round(timeout * 1000)))},
        timeout_s=timeout + 10,
    )
    if as_json:
        print_json(answer)
    else:
        result = answer["result"]
        click.echo(result if isinstance(result, str) else json.dumps(result, ensure_ascii=False))


@click.command("cast")
@click.argument("service", metavar="ID")
@click.argument("method")
@_words
@_args
@json_option
@server_options
def cast_command(
    client: Client, service: str, method: str, words: tuple[str, ...], given: str | None, as_json: bool
) -> None:
    """Send a message to METHOD of service ID and don't wait for it to be handled."""
    client.as_json = as_json
    path = f"/services/{segment(service)}/cast/{segment(method)}"
    answer = client.request("POST", path, _arguments(words, given))
    if as_json:
        print_json(answer)
    else:
        click.echo(answer["status"])


def _signature(method: dict[str, Any]) -> str:
    shown = []
    for parameter in method["parameters"]:
        prefix = {"var_positional": "*", "var_keyword": "**"}.get(parameter["kind"], "")
        annotation = f": {parameter['annotation']}" if parameter["annotation"] else ""
        default = f" = {parameter['default']}" if parameter["default"] else ""
        shown.append(f"{prefix}{parameter['name']}{annotation}{default}")
    returns = f" -> {method['returns']}" if method["returns"] else ""
    return f"{'async ' if method['is_async'] else ''}{method['name']}({', '.join(shown)}){returns}"


@click.command("check")
@click.argument("file", type=click.Path(allow_dash=True))
@click.option("--strict", is_flag=True, help="Exit with 6 where there are warnings or errors, too.")
@json_option
@server_options
def check_command(client: Client, file: str, strict: bool, as_json: bool) -> int:
    """Compile FILE (`-`: standard input), show its methods and what the static check finds. Nothing of it is run.

    Exits with 6 where a deploy would fail: it does not compile, or there are errors and security.code_check is deny.
    """
    client.as_json = as_json
    code, filename = read_source(file)
    report = client.request("POST", "/check", {"code": code, "filename": filename})
    if as_json:
        print_json(report)
    else:
        _print_report(filename, report)
    severities = {found["severity"] for found in report["findings"]}
    refused = "error" in severities and (strict or report["code_check"] == "deny")
    return EXIT_DOES_NOT_COMPILE if refused or not report["ok"] or (strict and "warning" in severities) else 0


def _print_report(filename: str, report: dict[str, Any]) -> None:
    if not report["ok"]:
        click.echo(f"{filename} can't be deployed:", err=True)
        for found in report["diagnostics"]:
            show_diagnostic(found, error=True)
        show_findings(report["findings"], report["findings_total"], error=True)
        return
    what = f"{report['kind']} service" + (f" {report['class_name']}" if report["class_name"] else "")
    extras = [name for name, given in (("async", report["is_async"]), ("concurrent", report["concurrent"])) if given]
    extras += ["with main()"] if report["has_main"] else []
    click.echo(f"{filename}: {what}" + (f" ({', '.join(extras)})" if extras else ""))
    for method in report["methods"]:
        doc = re.sub(r"\s+", " ", method["doc"])
        click.echo(f"  {_signature(method)}" + (f"  # {doc}" if doc else ""))
    if report["findings"]:
        policy = {
            "off": "deploys are not checked",
            "warn": "a deploy goes through, and tells of this",
            "deny": "a deploy with errors is refused",
        }[report["code_check"]]
        click.echo(f"findings (security.code_check is {report['code_check']}: {policy}):")
        show_findings(report["findings"], report["findings_total"], error=False)
