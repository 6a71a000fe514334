"""The link between the kernel and a service: length-prefixed frames over one stream socket.

A frame is a header of nine bytes, little endian (u32 length of what follows the length, u8 kind, u32 message id),
and a body. Bodies are JSON, but for CALL and CAST (u8 length of the method's name, the name, then the caller's JSON
arguments untouched), orders (runtime/orders.py) and CODE. Both ends import this module, so it imports next to nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

HEADER = struct.Struct("<IBI")
_LENGTH_COVERS = HEADER.size - 4


class Kind:
    """What a frame is. Plain integers: an enum's members cost a service process pages and time."""

    # kernel to service
    LOAD = 1  # an Order (runtime/orders.py)
    CALL = 2
    CAST = 3
    STOP = 4  # JSON: the reason for terminate()
    REPLY = 5  # result of a REQUEST
    REFUSAL = 6  # error of a REQUEST: {"error", "message", "details"}
    CHECK = 7  # an Order; answered with REPORT, after which another CHECK or EXAMINE may come
    EXEC = 8  # an Order with a program; the link closes with the exec, or FAILED comes
    EXAMINE = 9  # the same, for the findings of the static check alone
    HANDOVER = 10  # finish what came before this, hand the state over (HANDED, or FAILED), then stand by
    STATE = 11  # a state to take over: behind a LOAD that says so, or to one that stands by (ADOPTED, or FAILED)
    RESUME = 12  # the swap failed: go on serving
    GO = 13  # the former version is gone: main() may begin
    SETTLE = 14  # an Order without source: confine yourself now; the LOAD comes later
    # service to kernel
    READY = 16  # the service is loaded; its methods
    FAILED = 17  # it is not, and why: {"message", "diagnostics"}
    RESULT = 18
    ERROR = 19  # {"error", "message", "details"}
    DONE = 20  # a cast was handled
    REQUEST = 21  # {"operation", …}: the service wants something of the kernel
    LOG = 22  # one line of solo.log
    CODE = 23  # the marshalled code object, kept for restarts
    REPORT = 24  # outcome of CHECK or EXAMINE
    HANDED = 25  # the state, with the id of the HANDOVER
    ADOPTED = 26  # with the id of the STATE; a checkpoint of what was made of it, where the service persists
    CHECKPOINT = 27  # the state, for the store
    SETTLED = 28  # null: SETTLE is done


MESSAGE_MAX = 4096
"""Characters of what an exception says of itself."""

METHODS_MAX = 1000
NAME_BYTES_MAX = 255
"""Of a service: methods that can be called, and bytes of a method's name, whose length is one byte of a frame."""

RESTORE = "restore"
RESTORE_IF_PERSISTENT = "restore_if_persistent"
CODE_CHANGE = "code_change"
"""What a LOAD may say of a state: it follows at once, it follows and is for a persisting class only, or it comes later,
and until then the process stands by."""


class FrameError(Exception):
    """The peer does not speak this protocol: an oversized or impossible frame."""


def frame(kind: int, message_id: int, body: bytes = b"") -> bytes:
    return HEADER.pack(len(body) + _LENGTH_COVERS, kind, message_id) + body


def message_body(method: str, arguments: bytes) -> bytes:
    """Body of CALL and CAST. The name is at most 255 bytes; the kernel checks it against the methods it knows."""
    name = method.encode()
    return bytes((len(name),)) + name + arguments


def split_message(body: bytes) -> tuple[str, bytes]:
    """Method and JSON arguments of a CALL or CAST body."""
    end = 1 + body[0]
    return body[1:end].decode(), body[end:]


class FrameReader:
    """Cuts a byte stream into frames.

    Args:
        limit: largest body, bytes.
    """

    __slots__ = ("_buffer", "_limit", "_missing", "_parts")

    def __init__(self, limit: int) -> None:
        self._buffer = b""
        self._limit = limit
        self._parts: list[bytes] = []  # of a frame of which so many bytes are still missing
        self._missing = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Take `data`; yield each complete (kind, message id, body).

        Raises:
            FrameError: at the first frame that is over the limit or shorter than its own header.
        """
        if self._missing:
            self._parts.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            self._buffer, data = b"", b"".join(self._parts)
            self._parts, self._missing = [], 0
        buffer = self._buffer + data if self._buffer else data
        position, size = 0, len(buffer)
        try:
            while size - position >= HEADER.size:
                length, kind, message_id = HEADER.unpack_from(buffer, position)
                if not _LENGTH_COVERS <= length <= self._limit + _LENGTH_COVERS:
                    raise FrameError(f"frame of {length} bytes; the limit is {self._limit}")
                end = position + 4 + length
                if end > size:
                    self._missing = end - size
                    break
                body = buffer[position + HEADER.size : end]
                position = end
                yield kind, message_id, body
        finally:
            rest = buffer[position:] if position else buffer
            if self._missing:
                self._parts.append(rest)
            else:
                self._buffer = rest
