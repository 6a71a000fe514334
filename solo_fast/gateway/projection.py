"""gRPC messages <-> the plain structs of domain/messages.py, by plans that are made once per row.

A request field that is zero on the wire takes the struct's default, because proto3 does not send zeros; only a bool's
false is as good a word as true. The values' ranges are checked by the same declarations as REST's, so that no door lets
through what the other refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, get_args, get_type_hints

import msgspec
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from solo_fast.domain.errors import InvalidRequest, SoloError
from solo_fast.domain.messages import Response, now
from solo_fast.gateway.problems import invalid
from solo_fast.operations.table import Operation

_Values = dict[str, Any]


def epoch_ms(time: datetime) -> int:
    """UTC epoch milliseconds; whole ones, so that a time survives the way back and forth."""
    return round(time.timestamp() * 1000)


def json_text(body: bytes, what: str) -> msgspec.Raw:
    """Check that `body` is one JSON object or array in UTF-8, or nothing at all; it stays as it is.

    Args:
        body: JSON text.
        what: the field's name, for the error.

    Raises:
        InvalidRequest: it is something else; says where.
    """
    if not body:
        return msgspec.Raw(b"")
    try:
        _RAW.decode(body)
        if not body.isascii():
            body.decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        problem = invalid(error)
        raise InvalidRequest(problem.message.replace("the body", what, 1), details={"field": what}) from None
    if body.lstrip(b" \t\r\n")[:1] not in (b"{", b"["):
        raise InvalidRequest(
            f"{what} must be a JSON object (by name) or array (by position), or nothing", details={"field": what}
        )
    return msgspec.Raw(body)


def _moment(milliseconds: int, what: str) -> datetime:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        raise InvalidRequest(f"{what} is no time in epoch milliseconds", details={"field": what}) from None


_RAW = msgspec.json.Decoder(msgspec.Raw)


# -- requests ----------------------------------------------------------------------------------------------------


class RequestPlan:
    """Turns one row's protobuf requests into structs.

    Attributes:
        names: request field -> protobuf field, where they differ; for errors.
    """

    def __init__(self, operation: Operation, descriptor: Descriptor) -> None:
        self._type: Any = operation.request
        self.names = {field: wire for wire, field in operation.grpc_names.items()}
        self._read = _struct_reader(descriptor, operation.request, operation.grpc_names)
        # Strings have no range to check, and required ones are always there: such a row needs no second look.
        self._plain = all(field.type is str for field in msgspec.structs.fields(operation.request))

    def __call__(self, message: Message) -> Any:
        """The request; raises InvalidRequest that names the field."""
        values = self._read(message)
        if self._plain:
            return self._type(**values)
        try:
            return msgspec.convert(values, self._type)
        except msgspec.ValidationError as error:
            raise invalid(error, self.names) from None


def _struct_reader(
    descriptor: Descriptor, struct: type[msgspec.Struct], names: Mapping[str, str]
) -> Callable[[Any], _Values]:
    """A function that reads a message's fields into a dict that `msgspec.convert` takes."""
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    plan = []
    for wire in descriptor.fields:
        name = names.get(wire.name, wire.name)
        field = fields[name]
        always = field.required or wire.type == FieldDescriptor.TYPE_BOOL
        plan.append((wire.name, name, always, wire.has_presence, _value_reader(wire, field.type)))

    def read(message: Any) -> _Values:
        values: _Values = {}
        for wire_name, name, always, presence, convert in plan:
            if presence:
                if message.HasField(wire_name):
                    value = getattr(message, wire_name)
                    values[name] = value if convert is None else convert(value)
                continue
            value = getattr(message, wire_name)
            if value or always:
                values[name] = value if convert is None else convert(value)
        return values

    return read


def _value_reader(wire: FieldDescriptor, kind: Any) -> Callable[[Any], Any] | None:
    """How one field's value is read; None: as it is."""
    if wire.message_type is not None and wire.message_type.GetOptions().map_entry:
        return dict
    if wire.message_type is not None:
        inner = _struct_reader(wire.message_type, _struct_of(kind), {})
        if wire.is_repeated:
            return lambda items: [inner(item) for item in items]
        return inner
    if wire.is_repeated:
        return list
    if wire.enum_type is not None:
        words = {number: value.name.lower() for number, value in wire.enum_type.values_by_number.items()}
        return lambda number: words.get(number, str(number))
    if wire.type == FieldDescriptor.TYPE_BYTES:
        name = wire.name
        return lambda body: json_text(body, name)
    if any(getattr(candidate, "__origin__", candidate) is datetime for candidate in (kind, *get_args(kind))):
        name = wire.name
        return lambda milliseconds: _moment(milliseconds, name)
    return None


def _struct_of(kind: Any) -> type[msgspec.Struct]:
    """The struct type inside `X`, `list[X]` or `X | None`."""
    for candidate in (kind, *get_args(kind)):
        if isinstance(candidate, type) and issubclass(candidate, msgspec.Struct):
            return candidate
    raise TypeError(f"no struct in {kind!r}")


# -- responses ---------------------------------------------------------------------------------------------------


class ResponsePlan:
    """Turns one row's structs into protobuf responses."""

    def __init__(self, operation: Operation, descriptor: Descriptor) -> None:
        self._make = _message_maker(descriptor, operation.response, operation.grpc_values)
        self._class: Any = GetMessageClass(descriptor)
        self._fields = {field.name: field for field in descriptor.fields}

    def __call__(self, response: Response) -> Message:
        return self._make(response)

    def failure(self, error: SoloError, request: object) -> Message:
        """The response that carries an error in itself (DeployFailed), as the wire's history has it."""
        values: _Values = {"status": "error", "error": error.message, "timestamp": epoch_ms(now()), **error.details}
        if "service_id" in self._fields:
            values["service_id"] = getattr(request, "service_id", "")
        made = self._class()
        for name, value in values.items():
            field = self._fields.get(name)
            if field is None:
                continue
            if field.is_repeated and field.message_type is not None:
                known = {inner.name for inner in field.message_type.fields}
                for item in value:
                    plain = msgspec.to_builtins(item)
                    getattr(made, name).add(**{key: plain[key] for key in known & plain.keys()})
            elif not field.is_repeated:
                setattr(made, name, value)
        return made  # type: ignore[no-any-return]


def _message_maker(
    descriptor: Descriptor, struct: type[msgspec.Struct], fixed: Mapping[str, str]
) -> Callable[[Any], Message]:
    """A function that makes a message of `descriptor` from a struct; fields that only one of them has are left out."""
    types = get_type_hints(struct)
    plan = [
        (wire.name, _value_writer(wire, types[wire.name]))
        for wire in descriptor.fields
        if wire.name in types and wire.name not in fixed
    ]
    cls: Any = GetMessageClass(descriptor)

    def make(value: Any) -> Message:
        values: _Values = dict(fixed)
        for name, convert in plan:
            item = getattr(value, name)
            values[name] = item if convert is None else convert(item)
        return cls(**values)  # type: ignore[no-any-return]

    return make


def _value_writer(wire: FieldDescriptor, kind: Any) -> Callable[[Any], Any] | None:
    """How one attribute's value is written; None: as it is (None itself leaves the field unset)."""
    if wire.message_type is not None and not wire.message_type.GetOptions().map_entry:
        inner = _message_maker(wire.message_type, _struct_of(kind), {})
        if wire.is_repeated:
            return lambda items: [inner(item) for item in items]
        return lambda item: None if item is None else inner(item)
    if kind is datetime:
        return epoch_ms
    if kind is msgspec.Raw:
        return bytes
    return None


def only_in_one(operation: Operation, request: Descriptor, response: Descriptor) -> tuple[set[str], set[str]]:
    """Names of fields that the wire and the structs do not share, of the request and of the response.

    None in a request may be missing; in a response the differences are history, and a test lists them.
    """
    renamed = {operation.grpc_names.get(field.name, field.name) for field in request.fields}
    answered = {field.name for field in response.fields} - set(operation.grpc_values)
    own = {field.name for field in msgspec.structs.fields(operation.response)} - set(operation.grpc_values)
    return (
        renamed ^ {field.name for field in msgspec.structs.fields(operation.request)},
        answered ^ own,
    )
