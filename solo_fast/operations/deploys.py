"""What a deploy (or check, or swap) asks for, checked before anything is started."""

from __future__ import annotations

from collections.abc import Mapping

from solo_fast.config import Config
from solo_fast.domain import messages as m
from solo_fast.domain.errors import InvalidRequest, PayloadTooLarge
from solo_fast.store.desired import Settings

FILENAME_CHARACTERS_MAX = 255
PROGRAM_WORDS_MAX = 256
PROGRAM_BYTES_MAX = 65_536
"""Of argv and env together: what exec(2) takes without question."""


def source_of(request: m.DeployRequest | m.CheckRequest, bytes_max: int) -> bytes:
    """The source as UTF-8.

    Raises:
        InvalidRequest, PayloadTooLarge: says what is wrong with it.
    """
    if request.format == "elixir_source":
        raise InvalidRequest("format elixir_source is not supported; send Python source as python_source")
    try:
        text = request.code.encode()
    except UnicodeEncodeError:
        raise InvalidRequest("code holds lone surrogates, which UTF-8 can't carry") from None
    if len(text) > bytes_max:
        raise PayloadTooLarge(f"code has {len(text)} bytes, more than limits.max_source_bytes ({bytes_max})")
    if not text.strip() and request.format == "python_source":
        raise InvalidRequest("code is empty; send the source of a Python module")
    return text


def filename_of(name: str) -> str:
    """`name`, when a file may be called so.

    Raises:
        InvalidRequest: it may not.
    """
    if len(name) > FILENAME_CHARACTERS_MAX or name in (".", "..") or any(c in name for c in "/\0\n\r"):
        raise InvalidRequest(f"filename is one name without slashes, of at most {FILENAME_CHARACTERS_MAX} characters")
    return name


def settings_of(request: m.DeployRequest) -> Settings:
    """What is kept of the request beside its source.

    Raises:
        InvalidRequest: what an external binary runs is missing or impossible, or was given for Python.
    """
    given = [name for name in ("argv", "env", "port", "socket") if getattr(request, name)]
    if request.format != "external_binary":
        if given:
            raise InvalidRequest(f"{given[0]} is for format external_binary; this is {request.format}")
        return Settings(request.limits, request.metadata)
    _check_argv(request.argv)
    _check_env(request.env)
    if sum(len(word) + 1 for word in (*request.argv, *request.env, *request.env.values())) > PROGRAM_BYTES_MAX:
        raise InvalidRequest(f"argv and env have more than {PROGRAM_BYTES_MAX} characters together")
    if request.port and request.socket:
        raise InvalidRequest("give port or socket, not both: calls go to one of them")
    if "/" in request.socket or "\0" in request.socket or len(request.socket) > 100:
        raise InvalidRequest("socket is a name within the work directory: no slash, at most 100 characters")
    return Settings(request.limits, request.metadata, request.argv, request.env, request.port, request.socket)


def _check_argv(argv: list[str]) -> None:
    if not argv or not argv[0]:
        raise InvalidRequest("an external binary needs argv: the program and its arguments")
    if len(argv) > PROGRAM_WORDS_MAX or any("\0" in word for word in argv):
        raise InvalidRequest(f"argv has at most {PROGRAM_WORDS_MAX} words, without NUL characters")


def _check_env(env: Mapping[str, str]) -> None:
    if len(env) > PROGRAM_WORDS_MAX:
        raise InvalidRequest(f"env has more than {PROGRAM_WORDS_MAX} variables")
    for name, value in env.items():
        if not name or "=" in name or "\0" in name or "\0" in value or name.startswith("SOLO_"):
            raise InvalidRequest(
                f"env {name[:40]!r}: a name has no = and no NUL, a value no NUL, and SOLO_ names are the kernel's own"
            )


def check_metadata(config: Config, name: str, metadata: dict[str, str]) -> None:
    """Raise InvalidRequest where metadata, called `name` in the request, are over the configured limits."""
    entries, length = config.get("limits.metadata_entries"), config.get("limits.metadata_length")
    if len(metadata) > entries:
        raise InvalidRequest(f"{name} has {len(metadata)} entries, more than limits.metadata_entries ({entries})")
    for key, value in metadata.items():
        if not key or len(key) > length or len(value) > length:
            raise InvalidRequest(f"{name} key {key[:40]!r}: keys and values have at most {length} characters")
