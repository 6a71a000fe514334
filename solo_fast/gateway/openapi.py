"""The OpenAPI 3.1 document, made from the table and the messages: it can't say anything else than what is served."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from solo_fast import __version__
from solo_fast.domain import errors as e
from solo_fast.domain import messages as m
from solo_fast.gateway.identity import TENANT_HEADER
from solo_fast.gateway.rest_requests import Row
from solo_fast.gateway.rest_responses import RENDERERS
from solo_fast.operations.table import TABLE, Admission, Operation

_Json = dict[str, Any]

_ABOUT = """A user-level operating system for LLM agents. Every tenant's services are deployed from Python source into
supervised processes of their own, and called, watched and found here or over gRPC.

Every error is `{"error", "message", "timestamp", "details"?}`. Times are RFC 3339 in UTC unless they say otherwise."""

_JSON = "application/json"
_SSE = "text/event-stream"
_TEMPLATE = "#/components/schemas/{name}"


def openapi_document() -> _Json:
    """The whole document, as plain JSON-compatible values."""
    rows = [Row(operation) for operation in TABLE if operation.http is not None]
    types = {row.operation.response for row in rows} | {row.operation.request for row in rows if row.json}
    named = sorted({*types, m.ErrorBody}, key=lambda struct: struct.__name__)
    _, components = msgspec.json.schema_components(named, ref_template=_TEMPLATE)
    for row in rows:
        if row.json:
            _without_path(components[row.operation.request.__name__], row)
    paths: _Json = {}
    templates = _templates(rows)
    for row in rows:
        template = templates[_shape(row.http.path)]
        path = paths.setdefault(template, {})
        method = row.http.method.lower()
        made = _operation(row, template)
        path[method] = _merged(path[method], made) if method in path else made
    for path_name, summary in _PROBES:
        paths[path_name] = {"get": _probe(path_name, summary)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Solo", "version": __version__, "description": _ABOUT, "license": {"name": "MIT"}},
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(_tag(row.operation) for row in rows)],
        "paths": paths,
        "components": {"schemas": dict(sorted(components.items()))},
    }


def _without_path(schema: _Json, row: Row) -> None:
    """What the path says the body need not say again."""
    schema["required"] = [name for name in schema.get("required", ()) if name not in row.path_names]
    if not schema["required"]:
        del schema["required"]


def _tag(operation: Operation) -> str:
    """The first word of the path names the group: services, events, registry..., the kernel for what stands alone."""
    assert operation.http is not None
    word = operation.http.path.split("/")[1]
    return word if word in ("services", "registry", "events", "logs") else "kernel"


def _shape(path: str) -> str:
    return re.sub(r"\{\w+\}", "{}", path)


def _templates(rows: list[Row]) -> dict[str, str]:
    """One template for all rows of one shape, as OpenAPI wants it: a segment's names are joined where they differ."""
    names: dict[str, list[list[str]]] = {}
    for row in rows:
        places = names.setdefault(_shape(row.http.path), [[] for _ in row.path_names])
        for place, name in zip(places, row.path_names, strict=True):
            if name not in place:
                place.append(name)
    return {
        shape: shape.format(*("{" + "_or_".join(place) + "}" for place in places)) for shape, places in names.items()
    }


def _operation(row: Row, template: str) -> _Json:
    operation = row.operation
    made: _Json = {
        "operationId": operation.name,
        "tags": [_tag(operation)],
        "summary": operation.summary,
        "description": _description(operation),
        "parameters": list(_parameters(row, template)),
        "responses": {str(row.status): _success(row), **_failures(operation)},
    }
    if row.json:
        made["requestBody"] = {
            "required": any(
                field.required and field.name not in row.path_names
                for field in msgspec.structs.fields(operation.request)
            ),
            "content": {_JSON: {"schema": _reference(operation.request)}},
        }
    elif row.raw:
        made["requestBody"] = {
            "required": False,
            "description": f"The {row.raw}: a JSON object (by name) or array (by position), or nothing.",
            "content": {_JSON: {"schema": {"type": ["object", "array"]}}},
        }
    return made


def _description(operation: Operation) -> str:
    parts = [f"gRPC: `solo.v1.SoloKernel/{operation.rpc}`."] if operation.rpc else []
    if operation.permission:
        parts.append(f"Permission: `{operation.permission}`.")
    parts.append(f"Admission class: `{operation.admission.name.lower()}`.")
    return " ".join(parts)


def _field_schema(field: msgspec.structs.FieldInfo) -> _Json:
    schema = msgspec.json.schema(field.type)
    if isinstance(field.default, int | str) and field.default != "":
        schema["default"] = field.default
    return schema


def _parameters(row: Row, template: str) -> Iterable[_Json]:
    fields = {field.name: field for field in msgspec.structs.fields(row.operation.request)}
    if row.operation.needs_tenant or row.operation.of_system:
        yield {
            "name": TENANT_HEADER,
            "in": "header",
            "required": row.operation.needs_tenant,
            "description": "The tenant that asks." if row.operation.needs_tenant else "The tenant; none: Solo itself.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]*$"},
        }
    for shown, name in zip(re.findall(r"\{(\w+)\}", template), row.path_names, strict=True):
        parameter = {"name": shown, "in": "path", "required": True, "schema": _field_schema(fields[name])}
        yield parameter if shown == name else {**parameter, "description": f"Here: the {name}."}
    for header, field in row.headers.items():
        yield {"name": header.decode(), "in": "header", "required": False, "schema": _field_schema(fields[field])}
    for name, value in row.when.items():
        yield {"name": name, "in": "query", "required": True, "schema": {"const": value}}
    if row.http.query:
        yield {
            "name": row.http.query,
            "in": "query",
            "required": False,
            "description": "Every query parameter is an entry.",
            "style": "form",
            "explode": True,
            "schema": _field_schema(fields[row.http.query]),
        }
    else:
        for name, info in fields.items():
            if name in row.query_fields:
                yield {"name": name, "in": "query", "required": info.required, "schema": _field_schema(info)}


def _success(row: Row) -> _Json:
    operation = row.operation
    content: _Json = {_JSON: {"schema": _reference(operation.response)}}
    if operation.streams:
        text = f"Server-sent events; each `data` is a {operation.response.__name__}, its `event` the {row.http.event}."
        content = {_SSE: {"schema": {"type": "string"}, "x-item-schema": _reference(operation.response)}}
        return {"description": text, "content": content}
    for media in RENDERERS.get(operation.response, {}):
        content[media] = {"schema": {"type": "string"}}
    return {"description": "Done." if row.status == 200 else "Accepted.", "content": content}


def _possible(operation: Operation) -> list[type[e.SoloError]]:
    """Which errors a row can answer with, as far as the table knows."""
    made: list[type[e.SoloError]] = [e.InvalidRequest, e.InternalError]
    if operation.needs_tenant:
        made.append(e.MissingTenant)
    if operation.permission:
        made += [e.Unauthenticated, e.PermissionDenied]
    if operation.http is not None and ("{" in operation.http.path or operation.admission is Admission.STREAM):
        made.append(e.NotFound)
    if operation.http is not None and operation.http.body != "none":
        made.append(e.PayloadTooLarge)
    if operation.admission is not Admission.CONTROL:
        made += [e.TenantOverloaded, e.KernelOverloaded, e.ShuttingDown]
    if operation.admission is Admission.WRITE:
        made.append(e.StoreUnavailable)
    return made + list(operation.errors)


def _failures(operation: Operation) -> _Json:
    by_status: dict[int, list[type[e.SoloError]]] = {}
    for error in dict.fromkeys(_possible(operation)):
        by_status.setdefault(error.http_status, []).append(error)
    made: _Json = {}
    for status, errors in sorted(by_status.items()):
        codes = sorted({error.code for error in errors})
        first = (errors[0].__doc__ or "").split("\n")[0]
        made[str(status)] = {
            "description": f"{' or '.join(f'`{code}`' for code in codes)}: {first}",
            "content": {_JSON: {"schema": _reference(m.ErrorBody)}},
        }
        if status in (429, 503):
            about = "Where waiting helps: seconds until a retry has a chance."
            made[str(status)]["headers"] = {"Retry-After": {"description": about, "schema": {"type": "integer"}}}
    return made


def _merged(one: _Json, other: _Json) -> _Json:
    """Two rows that share path and method (a query parameter tells them apart) as the one that OpenAPI allows."""
    first_ones, others = ({(p["in"], p["name"]): p for p in row["parameters"]} for row in (one, other))
    parameters = {**first_ones, **others}
    for key, parameter in parameters.items():
        if key not in first_ones or key not in others:
            parameters[key] = {**parameter, "required": False}
        elif parameter != first_ones[key]:
            parameters[key] = _either(first_ones[key], parameter, other["operationId"])
    responses = {**other["responses"], **one["responses"]}
    for status in one["responses"].keys() & other["responses"].keys():
        first, second = one["responses"][status], other["responses"][status]
        if first != second and status.startswith("2"):
            responses[status] = {
                "description": f"{first['description']} Or: {second['description']}",
                "content": {**first["content"], **second["content"]},
            }
    operations = (one, other)
    return {
        **one,
        "operationId": "_or_".join(row["operationId"] for row in operations),
        "summary": " Or: ".join(row["summary"] for row in operations),
        "description": " ".join(row["description"] for row in operations),
        "parameters": list(parameters.values()),
        "responses": responses,
    }


def _either(one: _Json, other: _Json, operation_id: str) -> _Json:
    """A parameter that two rows know differently: as the first one has it, and what the other makes of its absence."""
    schema = {name: value for name, value in one["schema"].items() if name != "default"}
    default = other["schema"].get("default")
    return {
        **one,
        "schema": schema,
        "description": f"Left out: {default} for `{operation_id}`, no value for the other.",
    }


_PROBES = (
    ("/health/live", "Whether the process answers at all."),
    ("/health/ready", "Whether the kernel takes work: 503 while it does not."),
)


def _probe(path: str, summary: str) -> _Json:
    schema = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}
    content = {_JSON: {"schema": schema}}
    responses: _Json = {"200": {"description": "Yes.", "content": content}}
    if path.endswith("ready"):
        responses["503"] = {"description": "Not now.", "content": content}
    return {
        "operationId": re.sub(r"\W+", "_", path.strip("/")),
        "tags": ["kernel"],
        "summary": summary,
        "parameters": [],
        "responses": responses,
    }


def _reference(struct: type) -> _Json:
    return {"$ref": _TEMPLATE.format(name=struct.__name__)}
