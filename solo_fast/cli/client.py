"""The one client that commands talk to a server with: REST, over the standard library's HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from solo_fast.cli.output import CommandFailed
from solo_fast.domain.addresses import authority
from solo_fast.domain.errors import EXIT_CODES, EXIT_UNREACHABLE

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

ANSWER_SECONDS = 60.0  # beyond what the server itself waits by default


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
            CommandFailed: the server can't be reached, or answered with an error.
        """
        connection, response = self._open(method, path, body, query, headers, timeout_s)
        try:
            text = response.read()
        except OSError as error:
            raise self._unreachable(error) from None
        finally:
            connection.close()
        return self._answer(response, text)

    def stream(self, path: str, query: Mapping[str, Any], *, endless: bool) -> Iterator[dict[str, Any]]:
        """The data of server-sent events, as they come; returns when the server ends the stream.

        Raises:
            CommandFailed: as `request`, and when the server goes away in the middle.
        """
        connection, response = self._open("GET", path, None, query, {}, None if endless else ANSWER_SECONDS)
        try:
            if response.status != 200:
                self._answer(response, response.read())
            event = ""
            while line := response.readline():
                if line.startswith(b"event:"):
                    event = line[6:].strip().decode()
                elif line.startswith(b"data:"):
                    data = json.loads(line[5:])
                    if event == "error":
                        raise self._failed(data)
                    yield data
                elif not line.strip():
                    event = ""
        except OSError as error:
            raise self._unreachable(error) from None
        finally:
            connection.close()

    def _open(
        self,
        method: str,
        path: str,
        body: Any,
        query: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
        timeout_s: float | None,
    ) -> tuple[HTTPConnection, HTTPResponse]:
        from http.client import HTTPConnection, HTTPException

        sent = {**({"x-tenant-id": self.tenant} if self.tenant else {}), **(headers or {})}
        if body is not None:
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            sent["content-type"] = "application/json"
        target = path + _query(query or {})
        connection = HTTPConnection(self.host, self.port, timeout=timeout_s)
        try:
            connection.request(method, target, body, sent)
            return connection, connection.getresponse()
        except (OSError, HTTPException, UnicodeError, ValueError) as error:
            connection.close()
            raise self._unreachable(error) from None

    def _answer(self, response: HTTPResponse, text: bytes) -> Any:
        try:
            answer = json.loads(text)
        except ValueError:
            problem = (
                f"{authority(self.host, self.port)} does not answer as Solo does ({response.status} {response.reason})"
            )
            raise CommandFailed(
                {"error": "unreachable", "message": problem}, EXIT_UNREACHABLE, as_json=self.as_json
            ) from None
        if response.status >= 400:
            raise self._failed(answer)
        return answer

    def _failed(self, body: dict[str, Any]) -> CommandFailed:
        return CommandFailed(body, EXIT_CODES.get(body.get("error", ""), 1), as_json=self.as_json)

    def _unreachable(self, error: Exception) -> CommandFailed:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        message = (
            f"no server answers at {authority(self.host, self.port)} ({reason}); start one with `solo serve`, "
            "or name another with --host and --http-port"
        )
        return CommandFailed({"error": "unreachable", "message": message}, EXIT_UNREACHABLE, as_json=self.as_json)


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
