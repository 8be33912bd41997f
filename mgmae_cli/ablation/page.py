"""Self-contained HTML pages: text, tables and inline pictures in one file that opens from disk, without scripts."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

_STYLE = """
:root { --ink: #1d2330; --soft: #5c6575; --line: #dfe3ea; --tint: #f5f7fa; --mark: #0b6e4f; }
* { box-sizing: border-box; }
body { font: 15px/1.55 system-ui, "DejaVu Sans", sans-serif; color: var(--ink); margin: 0; background: #fff; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 24px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 34px 0 10px; border-bottom: 1px solid var(--line); padding-bottom: 5px; }
h3 { font-size: 14px; margin: 20px 0 4px; color: var(--soft); }
p.lead { font-size: 17px; color: var(--soft); margin: 0 0 14px; }
p.note, figcaption, .small { color: var(--soft); font-size: 13px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th { text-align: right; font-weight: 600; color: var(--soft); padding: 6px 12px; border-bottom: 2px solid var(--line); }
td { text-align: right; padding: 6px 12px; border-bottom: 1px solid var(--line); white-space: nowrap;
  vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
td b { color: var(--mark); }
td .difference { display: block; color: var(--soft); font-size: 12px; }
td .clear { color: var(--ink); font-weight: 600; }
table.facts td { text-align: left; white-space: normal; padding: 3px 18px 3px 0; border: 0; }
table.facts td:first-child { color: var(--soft); white-space: nowrap; }
.failed { color: #b3261e; }
figure { margin: 14px 0; }
img { max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: 4px; }
pre { background: var(--tint); border: 1px solid var(--line); border-radius: 4px; padding: 12px 14px;
  white-space: pre-wrap; overflow-wrap: anywhere; font: 12.5px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
.box { background: var(--tint); border-left: 4px solid #d99a2b; padding: 10px 16px; margin: 14px 0; }
details summary { cursor: pointer; color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; font-size: 13px; }
dt { font-weight: 600; } dd { margin: 0; color: var(--soft); }
"""


def document(title: str, parts: Iterable[str]) -> str:
    """Return a whole page."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><meta name="viewport" content="width=device-width">'
    body = "\n".join(parts)
    start = f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head><body><main>'
    return f"{start}\n{body}\n</main></body></html>\n"


def picture(png: bytes, caption: str = "") -> str:
    """Return a figure with its picture inside."""
    data = base64.b64encode(png).decode("ascii")
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">{below}</figure>'


def facts(rows: Iterable[tuple[str, object]]) -> str:
    """Return a table of names and values."""
    lines = "".join(f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>" for name, value in rows)
    return f'<table class="facts">{lines}</table>'


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; heads are text, cells are HTML."""
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def folded(summary: str, content: str) -> str:
    """Return content that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def code(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"
