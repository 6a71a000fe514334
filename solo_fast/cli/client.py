"""The one client that commands talk to a server with: REST, over the standard library's HTTP."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from solo_fast.cli.output import CommandFailed
from solo_fast.domain.addresses import authority
from solo_fast.domain.errors import EXIT_CODES, EXIT_UNREACHABLE

if TYPE_CHECKING:
    from http.client import HTTPResponse

ANSWER_SECONDS = 60.0  # beyond what the server itself waits by default

CHANGE_SECONDS = 3 * 600.0 + ANSWER_SECONDS
"""For what starts and ends versions: limits give each of both 600 s, and one that fails brings the former one back."""


@dataclass(slots=True)
class Client:
    """A server's address, and the tenant to speak for ("": none).

    Attributes:
        tenant: "" names none: for what the operator of the host asks.
        as_json: errors are printed as JSON.
    """

    host: str
    port: int
    tenant: str
    as_json: bool = False

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = ANSWER_SECONDS,
    ) -> Any:
        """One request; the answer's JSON. A `bytes` body goes as it is.

        Raises:
            CommandFailed: the server can't be reached, or answered with an error, or too late, or with half an answer.
        """
        with self._asked(method, path, body, query, headers, timeout_s) as response:
            return self._answer(response, response.read())

    def stream(self, path: str, query: Mapping[str, Any], *, endless: bool) -> Iterator[dict[str, Any]]:
        """The data of server-sent events, as they come; returns when the server ends the stream.

        Raises:
            CommandFailed: as `request`, and when the server goes away in the middle.
        """
        timeout_s = None if endless else ANSWER_SECONDS
        with self._asked("GET", path, None, query, None, timeout_s) as response:
            if response.status != 200:
                self._answer(response, response.read())
            event = ""
            for line in _lines(response):
                if line.startswith(b"event:"):
                    event = line[6:].strip().decode()
                elif line.startswith(b"data:"):
                    data = json.loads(line[5:])
                    if event == "error":
                        raise self._failed(data)
                    yield data
                elif not line.strip():
                    event = ""

    @contextlib.contextmanager
    def _asked(
        self,
        method: str,
        path: str,
        body: Any,
        query: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
        timeout_s: float | None,
    ) -> Iterator[HTTPResponse]:
        """A request's response. What goes wrong until it is read becomes the command's own error."""
        from http.client import HTTPConnection, HTTPException, IncompleteRead

        sent = {**({"x-tenant-id": self.tenant} if self.tenant else {}), **(headers or {})}
        if body is not None:
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            sent["content-type"] = "application/json"
        target = path + _query(query or {})
        try:
            connection = HTTPConnection(self.host, self.port, timeout=timeout_s)
            connection.connect()
        except (OSError, HTTPException, ValueError) as error:  # a host that is no name is one of the latter two
            raise self._unreachable(error) from None
        try:
            connection.request(method, target, body, sent)
            yield connection.getresponse()
        except (OSError, IncompleteRead) as error:
            if isinstance(error, TimeoutError) and timeout_s is not None:
                message = f"the server has not answered within {timeout_s:g} s; what was asked may go on"
                raise self._failed({"error": "deadline_exceeded", "message": message}) from None
            message = f"the connection to {authority(self.host, self.port)} was cut before the answer was whole"
            raise self._no_use(f"{message}: the server may have ended") from None
        except HTTPException:
            raise self._no_use(f"{authority(self.host, self.port)} does not answer as Solo does") from None
        finally:
            connection.close()

    def _answer(self, response: HTTPResponse, text: bytes) -> Any:
        try:
            answer = json.loads(text)
        except ValueError:
            problem = (
                f"{authority(self.host, self.port)} does not answer as Solo does ({response.status} {response.reason})"
            )
            raise self._no_use(problem) from None
        if response.status >= 400:
            raise self._failed(answer)
        return answer

    def _failed(self, body: dict[str, Any]) -> CommandFailed:
        return CommandFailed(body, EXIT_CODES.get(body.get("error", ""), 1), as_json=self.as_json)

    def _unreachable(self, error: Exception) -> CommandFailed:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return self._no_use(
            f"no server answers at {authority(self.host, self.port)} ({reason}); start one with `solo serve`, "
            "or name another with --host and --http-port"
        )

    def _no_use(self, message: str) -> CommandFailed:
        return CommandFailed({"error": "unreachable", "message": message}, EXIT_UNREACHABLE, as_json=self.as_json)


def _lines(response: HTTPResponse) -> Iterator[bytes]:
    """A streamed body's lines. `HTTPResponse.readline` takes a cut connection for the end of the body; this raises.

    Raises:
        IncompleteRead: the connection ended before the body did.
    """
    rest = b""
    while part := response.read1():
        *lines, rest = (rest + part).split(b"\n")
        yield from lines


def segment(name: str) -> str:
    """A name as one segment of a path.

    Raises:
        click.UsageError: it is empty (a shell's variable that was not set, most often).
    """
    from urllib.parse import quote

    if not name:
        raise click.UsageError("a name is empty; give the service's ID and, for a call, the METHOD")
    return quote(name, safe="")


def _query(query: Mapping[str, Any]) -> str:
    given = {name: str(value).lower() if isinstance(value, bool) else value for name, value in query.items()}
    given = {name: value for name, value in given.items() if value is not None and value != ""}
    if not given:
        return ""
    from urllib.parse import urlencode

    return "?" + urlencode(given, doseq=True)
