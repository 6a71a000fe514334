"""The OpenAPI document and its page, without a server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest

from solo_fast.gateway.docs_page import docs_page
from solo_fast.gateway.openapi import openapi_document
from solo_fast.operations.table import TABLE

DOCUMENT = openapi_document()


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def walk(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)


def test_it_is_json_and_says_its_version() -> None:
    again = json.loads(json.dumps(DOCUMENT))
    assert again == DOCUMENT
    assert again["openapi"] == "3.1.0"
    assert set(again) >= {"openapi", "info", "paths", "components"}


def test_every_row_is_there() -> None:
    made = {name for _, _, operation in operations() for name in operation["operationId"].split("_or_")}
    assert {operation.name for operation in TABLE if operation.http} <= made


def test_every_reference_resolves() -> None:
    references = [node["$ref"] for node in walk(DOCUMENT) if "$ref" in node]
    assert references
    for reference in references:
        assert reference.removeprefix("#/components/schemas/") in DOCUMENT["components"]["schemas"]


def test_templates_and_path_parameters_agree() -> None:
    for path, _, operation in operations():
        named = [p["name"] for p in operation["parameters"] if p["in"] == "path"]
        assert named == re.findall(r"\{(\w+)\}", path)
        assert all(p["required"] for p in operation["parameters"] if p["in"] == "path")


def test_no_two_templates_mean_the_same_path() -> None:
    shapes = [re.sub(r"\{\w+\}", "{}", path) for path in DOCUMENT["paths"]]
    assert len(shapes) == len(set(shapes))


def test_ids_and_parameters_are_unique() -> None:
    ids = [operation["operationId"] for _, _, operation in operations()]
    assert len(ids) == len(set(ids))
    for _, _, operation in operations():
        keys = [(p["in"], p["name"]) for p in operation["parameters"]]
        assert len(keys) == len(set(keys))


def test_every_row_says_how_it_fails() -> None:
    for path, _, operation in operations():
        codes = set(operation["responses"])
        assert any(code.startswith("2") for code in codes), path
        if "/health/" not in path:
            assert {"400", "500"} <= codes, path
    deploy = DOCUMENT["paths"]["/services"]["post"]["responses"]
    assert {"201", "400", "409", "413", "422", "429", "503"} <= set(deploy)
    assert "`store_unavailable`" in deploy["503"]["description"]
    assert "`store_unavailable`" not in DOCUMENT["paths"]["/services"]["get"]["responses"]["503"]["description"]


@pytest.mark.parametrize("path", ["/events", "/logs"])
def test_streams_are_event_streams(path: str) -> None:
    assert "text/event-stream" in DOCUMENT["paths"][path]["get"]["responses"]["200"]["content"]


def test_where_two_rows_share_a_path_no_default_is_anothers() -> None:
    [since] = [p for p in DOCUMENT["paths"]["/events"]["get"]["parameters"] if p["name"] == "since_id"]
    assert "default" not in json.dumps(since["schema"])
    assert "0 for `events`" in since["description"]
    assert since["required"] is False
    [limit] = [p for p in DOCUMENT["paths"]["/events"]["get"]["parameters"] if p["name"] == "limit"]
    assert limit["schema"]["default"] == 100


def test_what_the_path_says_no_body_must_say() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    for path, _, operation in operations():
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
        schema = schemas.get(body.get("$ref", "").rsplit("/", 1)[-1], {})
        assert not set(schema.get("required", ())) & set(re.findall(r"\{(\w+)\}", path)), path
    assert DOCUMENT["paths"]["/services/{service_id}"]["put"]["requestBody"]["required"] is False
    assert schemas["DeployRequest"]["required"] == ["service_id"]


def test_only_those_whom_waiting_helps_are_told_for_how_long() -> None:
    for _, _, operation in operations():
        for status in operation["responses"].keys() & {"429", "503"}:
            for header in operation["responses"][status].get("headers", {}).values():
                assert header["description"].startswith("Where waiting helps")


class Outline(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta",):
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.add(value or "")
            if name in ("href", "src"):
                self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_asks_nobody_for_anything() -> None:
    page = docs_page(DOCUMENT)
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert "<script" not in page
    assert "@import" not in page
    assert "url(" not in page
    assert all(link == "/openapi.json" or link.removeprefix("#") in outline.ids for link in outline.links)
    for path, _, operation in operations():
        assert path in page
        assert operation["operationId"] in outline.ids


def test_the_page_escapes() -> None:
    document = json.loads(json.dumps(DOCUMENT))
    document["info"]["title"] = "<script>alert(1)</script>"
    document["paths"]["/services"]["get"]["summary"] = "a <b> & `c`"
    page = docs_page(document)
    assert "<script>" not in page
    assert "a &lt;b&gt; &amp; `c`" in page
