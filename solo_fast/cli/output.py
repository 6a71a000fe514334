"""What commands print: tables for people, JSON for programs, errors for both."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click


class ReaderGone(Exception):
    """Nobody reads our output any more."""


class CommandFailed(Exception):
    """A command can't do what was asked.

    Args:
        body: the error as REST tells it: {"error", "message", "timestamp", "details"?}; the time can be left out.
        exit_code: what `solo` exits with.
        as_json: print the body on stdout, as the one JSON document.
    """

    def __init__(self, body: dict[str, Any], exit_code: int, *, as_json: bool = False) -> None:
        super().__init__(body.get("message", ""))
        self.body = {"timestamp": rfc3339(datetime.now(UTC)), **body}
        self.exit_code = exit_code
        self.as_json = as_json

    def show(self) -> None:
        if self.as_json:
            print_json(self.body)
            return
        click.echo(f"{style('solo:', fg='red', error=True)} {self.body.get('message', '')}", err=True)
        details = self.body.get("details") or {}
        for found in details.get("diagnostics", []):
            show_diagnostic(found, error=True)
        if details.get("findings") and not any(found.get("rule") for found in details.get("diagnostics", [])):
            click.echo("the static check found:", err=True)
            show_findings(details["findings"], details.get("findings_total", 0), error=True)
        if details.get("traceback"):
            click.echo(details["traceback"].rstrip(), err=True)


def colourful(*, error: bool = False) -> bool:
    """Whether the stream is a terminal that may be coloured (NO_COLOR says no)."""
    return (sys.stderr if error else sys.stdout).isatty() and not os.environ.get("NO_COLOR")


def style(text: str, *, error: bool = False, **looks: Any) -> str:
    return click.style(text, **looks) if colourful(error=error) else text


def print_json(document: Any) -> None:
    """ASCII, so that half a surrogate pair, which no encoding can write, is told as the JSON that it came as."""
    click.echo(json.dumps(document))


def show_diagnostic(found: dict[str, Any], *, error: bool = False) -> None:
    """One place where source is wrong, with the line and a caret."""
    place = f"line {found['line']}" + (f", column {found['column']}" if found.get("column") else "")
    message = f"  {place}: {found['message']}" if found.get("line") else f"  {found['message']}"
    click.echo(message, err=error)
    text = found.get("text", "")
    if text:
        shown = text.replace("\t", " ")
        click.echo(f"    {shown}", err=error)
        if found.get("column"):
            click.echo("    " + " " * (found["column"] - 1) + style("^", fg="red", error=error), err=error)


def show_findings(found: list[dict[str, Any]], total: int, *, error: bool) -> None:
    """What the static check found, one place after the other."""
    for finding in found:
        colour = {"error": "red", "warning": "yellow"}.get(finding["severity"], "blue")
        severity = style(finding["severity"], fg=colour, error=error)
        show_diagnostic({**finding, "message": f"{severity} {finding['rule']}: {finding['message']}"}, error=error)
    if total > len(found):
        click.echo(f"  and {total - len(found)} more", err=error)


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Aligned columns; nothing but a note where there is no row."""
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        click.echo("(none)")
        return
    widths = [max(len(row[i]) for row in [list(heads), *cells]) for i in range(len(heads))]
    line = "  ".join(head.ljust(width) for head, width in zip(heads, widths, strict=True))
    click.echo(style(line.rstrip(), bold=True))
    for row in cells:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def pairs(entries: Iterable[tuple[str, Any]]) -> None:
    """Names and values, one a line."""
    shown = [(name, str(value)) for name, value in entries]
    width = max(len(name) for name, _ in shown)
    for name, value in shown:
        click.echo(f"{style(name.ljust(width), bold=True)}  {value}")


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"


def moment(timestamp: str) -> str:
    """An RFC 3339 time in UTC, to the millisecond; it says that it is UTC, as times that are given are local ones."""
    seconds, _, fraction = timestamp.replace("T", " ").rstrip("Z").partition(".")
    return f"{seconds}.{fraction[:3]:0<3}Z"


def rfc3339(time: datetime) -> str:
    """A time in UTC as REST writes it."""
    return time.isoformat().replace("+00:00", "Z")
