"""The pieces of HTML that the report is made of. Everything that is text is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path


class Html(str):
    """Markup that is ready: it is not escaped again."""


@dataclass(frozen=True)
class Section:
    """One section of the page: `key` is its anchor."""

    key: str
    title: str
    body: Html


def text(value: object) -> Html:
    """Any value as escaped text; `Html` passes as it is."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def join(parts: Iterable[object]) -> Html:
    return Html("\n".join(text(part) for part in parts))


def paragraph(value: object, kind: str = "") -> Html:
    return Html(f"<p{_class(kind)}>{text(value)}</p>")


def heading(value: object) -> Html:
    return Html(f"<h3>{text(value)}</h3>")


def bullets(items: Iterable[object]) -> Html:
    return Html(f'<ul class="plain">{"".join(f"<li>{text(item)}</li>" for item in items)}</ul>')


def cards(items: Iterable[tuple[str, str, str]]) -> Html:
    """Name, value and note of each figure at a glance."""
    body = "".join(
        f'<div class="card"><dt>{text(name)}</dt><dd class="value">{text(value)}</dd>'
        + (f'<dd class="note">{text(note)}</dd>' if note else "")
        + "</div>"
        for name, value, note in items
    )
    return Html(f'<dl class="cards">{body}</dl>')


def image(uri: str, alt: str, kind: str = "") -> Html:
    return Html(f'<img{_class(kind)} src="{uri}" alt="{escape(alt, quote=True)}">')


def figure(content: Html, caption: object) -> Html:
    return Html(f"<figure>{content}<figcaption>{text(caption)}</figcaption></figure>")


def charts(figures: Iterable[Html], kind: str = "") -> Html:
    """Charts beside each other where there is room."""
    return Html(f"<div{_class(f'charts {kind}'.strip())}>{''.join(figures)}</div>")


def tiles(figures: Iterable[Html]) -> Html:
    """Small pictures with captions in as many columns as fit."""
    return Html(f'<div class="tiles">{"".join(figures)}</div>')


def table(head: Sequence[object], rows: Iterable[Sequence[object]], caption: object, *, numbers: int = 0) -> Html:
    """A table whose first column names the row and whose last `numbers` columns are right-aligned."""
    first = len(head) - numbers
    columns = "".join(
        f'<th scope="col"{_class("number" if i >= first else "")}>{text(c)}</th>' for i, c in enumerate(head)
    )
    lines = []
    for name, *values in rows:
        cells = "".join(
            f"<td{_class('number' if i >= first else '')}>{text(value)}</td>" for i, value in enumerate(values, start=1)
        )
        lines.append(f'<tr><th scope="row">{text(name)}</th>{cells}</tr>')
    return _plate(f"<table><thead><tr>{columns}</tr></thead><tbody>{''.join(lines)}</tbody></table>", caption)


def picture_table(
    head: Sequence[object], rows: Iterable[tuple[object, Sequence[Html]]], caption: object, tile: float = 6.4
) -> Html:
    """Pictures in named rows and columns, at most `tile` rem wide."""
    width = max(3.6, min(tile, 54 / len(head) - 0.7))
    columns = "".join(f'<th scope="col">{text(name)}</th>' for name in head)
    lines = [
        f'<tr><th scope="row">{text(name)}</th>{"".join(f"<td>{picture}</td>" for picture in pictures)}</tr>'
        for name, pictures in rows
    ]
    drawn = f'<table class="pictures" style="--tile:{width:.1f}rem"><thead><tr><td></td>{columns}</tr></thead>'
    return _plate(f"{drawn}<tbody>{''.join(lines)}</tbody></table>", caption)


def _plate(content: str, caption: object) -> Html:
    """A table that scrolls sideways on its own where the page is narrow; its caption stays."""
    return Html(
        f'<figure class="plate"><figcaption>{text(caption)}</figcaption>'
        f'<div class="scroll" tabindex="0">{content}</div></figure>'
    )


def details(summary: object, body: Html) -> Html:
    """Folded away until asked for; works without scripts."""
    return Html(f"<details><summary>{text(summary)}</summary>{body}</details>")


def scale(low: str, high: str, colours: str) -> Html:
    """A colour scale in a line of text."""
    return Html(f'{text(low)} <span class="scale {colours}" aria-hidden="true"></span> {text(high)}')


def page(title: str, facts: str, sections: Sequence[Section], footer: str) -> str:
    """The whole document, self-contained."""
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    links = "".join(f'<li><a href="#{section.key}">{text(section.title)}</a></li>' for section in sections)
    body = "\n".join(
        f'<section id="{section.key}" aria-labelledby="{section.key}-title">'
        f'<h2 id="{section.key}-title">{text(section.title)}</h2>\n{section.body}</section>'
        for section in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="s2tdpt">
<title>{text(title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<p class="overline">S²TDPT report</p>
<h1>{text(title)}</h1>
<p class="facts">{text(facts)}</p>
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main>
{body}
</main>
<footer>{text(footer)}</footer>
</body>
</html>
"""


def _class(names: str) -> str:
    return f' class="{names}"' if names else ""
