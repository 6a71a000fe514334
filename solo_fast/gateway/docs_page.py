"""The documentation page: the OpenAPI document as one HTML file that asks for nothing else, scripts included."""

from __future__ import annotations

import json
from html import escape
from typing import Any

_Json = dict[str, Any]

_STYLE = """
:root{--ink:#1d2433;--soft:#5b6577;--line:#e3e7ee;--back:#f7f8fb;--card:#fff;--code:#eef1f6;
--get:#1c7c54;--post:#2459c9;--put:#a35c00;--delete:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9f0;--soft:#9aa4b6;--line:#2b3342;--back:#12161f;--card:#191f2b;
--code:#232b3a;--get:#5fcf9f;--post:#86aaff;--put:#f0b35c;--delete:#ff8a80}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main,header>div{max-width:60rem;margin:0 auto;padding:0 1.25rem}
header{border-bottom:1px solid var(--line);background:var(--card);padding:2rem 0 1.25rem}
h1{margin:0;font-size:1.9rem;letter-spacing:-.02em}h1 small{font-size:.95rem;color:var(--soft);font-weight:400}
h2{margin:2.2rem 0 .7rem;font-size:1.15rem;text-transform:capitalize}
h3{margin:1.1rem 0 .35rem;font-size:.8rem;color:var(--soft);text-transform:uppercase;letter-spacing:.06em}
p{margin:.5rem 0}nav a{margin-right:1rem}a{color:var(--post);text-decoration:none}a:hover{text-decoration:underline}
details{background:var(--card);border:1px solid var(--line);border-radius:10px;margin:.5rem 0}
details>div{padding:0 1rem 1rem;border-top:1px solid var(--line)}
summary{padding:.65rem 1rem;cursor:pointer;display:flex;gap:.8rem;align-items:baseline;list-style:none}
summary::-webkit-details-marker{display:none}summary span{color:var(--soft);margin-left:auto;text-align:right}
b.m{min-width:4.2rem;font:700 .78rem ui-monospace,monospace}
.get{color:var(--get)}.post{color:var(--post)}.put{color:var(--put)}.delete{color:var(--delete)}
code,pre{font:.86em ui-monospace,SFMono-Regular,Menlo,monospace}code{background:var(--code);padding:.1em .35em;
border-radius:4px}summary code{background:none;padding:0;font-weight:600}
pre{background:var(--code);padding:.8rem 1rem;border-radius:8px;overflow:auto;margin:.3rem 0}
table{border-collapse:collapse;width:100%}td{padding:.35rem .8rem .35rem 0;vertical-align:top;
border-top:1px solid var(--line)}tr:first-child td{border-top:0}td:last-child{color:var(--soft)}
footer{color:var(--soft);margin:3rem 0}
"""


def docs_page(document: _Json) -> str:
    """The page, rendered from an OpenAPI document; every text in it is escaped."""
    info = document["info"]
    groups: dict[str, list[str]] = {tag["name"]: [] for tag in document["tags"]}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            groups[operation["tags"][0]].append(_operation(path, method, operation))
    links = "".join(f'<a href="#{escape(name)}">{escape(name)}</a>' for name in [*groups, "schemas"])
    sections = "".join(f'<h2 id="{escape(name)}">{escape(name)}</h2>{"".join(items)}' for name, items in groups.items())
    schemas = "".join(_schema(name, schema) for name, schema in document["components"]["schemas"].items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(info['title'])} {escape(info['version'])}</title><style>{_STYLE}</style></head><body>"
        f"<header><div><h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>"
        f"{_text(info['description'])}<nav>{links}</nav></div></header>"
        f'<main>{sections}<h2 id="schemas">Schemas</h2>{schemas}'
        '<footer>The same as <a href="/openapi.json">openapi.json</a>, for programs.</footer></main></body></html>'
    )


def _operation(path: str, method: str, operation: _Json) -> str:
    parts = [_text(operation.get("description", ""))]
    if operation["parameters"]:
        rows = "".join(
            f"<tr><td><code>{escape(p['name'])}</code></td><td>{escape(p['in'])}"
            f"{', required' if p['required'] else ''}</td><td>{_kind(p['schema'])} "
            f"{escape(p.get('description', ''))}</td></tr>"
            for p in operation["parameters"]
        )
        parts.append(f"<h3>Parameters</h3><table>{rows}</table>")
    if "requestBody" in operation:
        body = operation["requestBody"]
        parts.append(f"<h3>Body</h3><p>{_content(body['content'])} {escape(body.get('description', ''))}</p>")
    answers = "".join(
        f"<tr><td><code>{escape(status)}</code></td><td>{_content(answer.get('content', {}))}</td>"
        f"<td>{_inline(answer['description'])}</td></tr>"
        for status, answer in operation["responses"].items()
    )
    parts.append(f"<h3>Answers</h3><table>{answers}</table>")
    return (
        f'<details id="{escape(operation["operationId"])}"><summary><b class="m {escape(method)}">{method.upper()}</b>'
        f"<code>{escape(path)}</code><span>{escape(operation['summary'])}</span></summary>"
        f"<div>{''.join(parts)}</div></details>"
    )


def _schema(name: str, schema: _Json) -> str:
    text = json.dumps(schema, indent=2, ensure_ascii=False)
    return (
        f'<details id="schema-{escape(name)}"><summary><code>{escape(name)}</code></summary>'
        f"<div><pre>{escape(text)}</pre></div></details>"
    )


def _content(content: _Json) -> str:
    return " or ".join(f"{_kind(item['schema'])} <code>{escape(media)}</code>" for media, item in content.items())


def _kind(schema: _Json) -> str:
    """A schema in a few words, with a link where it has a name."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[1])
        return f'<a href="#schema-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(one) for one in schema["anyOf"]))
    if "const" in schema:
        return f"<code>{escape(str(schema['const']))}</code>"
    if "enum" in schema:
        return " or ".join(f"<code>{escape(str(value)) or '&quot;&quot;'}</code>" for value in schema["enum"])
    kind = schema.get("type", "anything")
    words = escape(" or ".join(kind) if isinstance(kind, list) else kind)
    for key, sign in (("minimum", "&ge;"), ("maximum", "&le;")):
        if key in schema:
            words += f" {sign} {escape(str(schema[key]))}"
    if schema.get("default") not in (None, "", [], {}):
        words += f", default {escape(json.dumps(schema['default']))}"
    return words


def _text(text: str) -> str:
    return "".join(f"<p>{_inline(part)}</p>" for part in text.split("\n\n") if part)


def _inline(text: str) -> str:
    """Escaped, with what stands in backquotes as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if at % 2 else part for at, part in enumerate(parts))
