"""One self-contained HTML page from sections: no script, no link, no font or picture that is not inside the file."""

import html
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Text:
    """A paragraph; `words in backticks` are set as code."""

    text: str


@dataclass(frozen=True)
class Figure:
    """A drawing: inline SVG from `charts.drawing`, its caption, and what it shows in words for who cannot see it."""

    svg: str
    caption: str
    alternative: str


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column is a name, the others are numbers and align right. `strong`: rows set in bold."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    strong: Sequence[int] = ()


@dataclass(frozen=True)
class Sound:
    """A WAV file in base64, with a player, and its caption."""

    wav: str
    caption: str


Block = Text | Figure | Table | Sound


@dataclass(frozen=True)
class Command:
    """Something to type next, and what it does."""

    line: str
    effect: str


@dataclass(frozen=True)
class Section:
    """What a domain has to show.

    title: A few words.
    summary: The result in one sentence, with its number; it stands at the top of the page too.
    blocks: Paragraphs, figures and tables, in order.
    next: What to try.
    """

    title: str
    summary: str
    blocks: Sequence[Block]
    next: Sequence[Command] = ()


@dataclass
class Report:
    """The page. Sections are added as they are finished; `missing` says what was not run, and why.

    facts: Name and value of what the reader should know of the run: machine, date, seconds.
    """

    title: str
    lead: str
    facts: dict[str, str]
    sections: list[Section] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the page, whole or not at all.

        Args:
            path: The .html file; its folder is made.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        part.write_text(self.html(), encoding="utf-8")
        part.replace(path)

    def html(self) -> str:
        """The page."""
        facts = "".join(f"<div><dt>{_text(k)}</dt><dd>{_text(v)}</dd></div>" for k, v in self.facts.items())
        body = [f"<header><h1>{_text(self.title)}</h1><p class=lead>{_text(self.lead)}</p>"]
        if self.sections:
            items = "".join(f"<li><a href='#{_slug(s.title)}'>{_text(s.title)}</a>: {_text(s.summary)}</li>"
                            for s in self.sections)  # fmt: skip
            body.append(f"<ul class=summary>{items}</ul>")
        body.append(f"<dl>{facts}</dl></header><main>")
        body += [_section(section) for section in self.sections]
        if self.missing:
            lines = "".join(f"<li>{_text(name)}: {_text(why)}</li>" for name, why in self.missing.items())
            body.append(f"<section><h2>Not in this report</h2><ul>{lines}</ul></section>")
        commands = [command for section in self.sections for command in section.next]
        if commands:
            rows = "".join(f"<dt><code>{_text(c.line)}</code></dt><dd>{_text(c.effect)}</dd>" for c in commands)
            body.append(f"<section id=next><h2>What to try next</h2><dl class=next>{rows}</dl></section>")
        head = f"<meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'>{ICON}"
        return (
            f"<!doctype html>\n<html lang=en>\n<head>{head}<title>{_text(self.title)}</title>\n"
            f"<style>{STYLE}</style></head>\n<body>{''.join(body)}</main></body>\n</html>\n"
        )


def _section(section: Section) -> str:
    blocks = "\n".join(_block(block) for block in section.blocks)
    return f"<section id='{_slug(section.title)}'><h2>{_text(section.title)}</h2>\n{blocks}</section>\n"


def _block(block: Block) -> str:
    match block:
        case Text(text):
            return f"<p>{_text(text)}</p>"
        case Figure(svg, caption, alternative):
            picture = f'<div role=img aria-label="{html.escape(alternative, quote=True)}">{svg}</div>'
            return f"<figure>{picture}<figcaption>{_text(caption)}</figcaption></figure>"
        case Sound(wav, caption):
            label = html.escape(caption, quote=True)
            player = f'<audio controls preload=metadata aria-label="{label}" src="data:audio/wav;base64,{wav}"></audio>'
            return f"<figure class=sound>{player}<figcaption>{_text(caption)}</figcaption></figure>"
        case Table(head, rows, caption, strong):
            top = "".join(f"<th scope=col>{_text(cell)}</th>" for cell in head)
            lines = "".join(_row(row, i in strong) for i, row in enumerate(rows))
            return (
                f"<div class=wide><table><caption>{_text(caption)}</caption><thead><tr>{top}</tr></thead>"
                f"<tbody>{lines}</tbody></table></div>"
            )


def _row(row: Sequence[str], strong: bool) -> str:
    cells = f"<th scope=row>{_text(row[0])}</th>" + "".join(f"<td>{_text(cell)}</td>" for cell in row[1:])
    return f"<tr{' class=strong' if strong else ''}>{cells}</tr>"


def _text(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def _slug(text: str) -> str:
    return re.sub(r"\W+", "-", text.lower()).strip("-")


ICON = "<link rel=icon href='data:,'>"  # so that no browser asks for /favicon.ico
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5c6570; --line: #d8dde3; --page: #ffffff; --panel: #f5f7f9;
  --c0: #0f62ab; --c1: #c2490a; --c2: #5c8a1e; --c3: #8a4fbd; --c4: #0d8a86; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ed; --soft: #9aa5b1; --line: #353c45; --page: #14171b;
  --panel: #1d2228; --c0: #6cb2f5; --c1: #f59a5b; --c2: #a3cf62; --c3: #c79cf0;
  --c4: #5ccfc9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.6 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
header, main { max-width: 52rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; margin: 0 0 .6rem; padding-top: 1.6rem; border-top: 1px solid var(--line); }
section { margin-top: 2.2rem; }
main { padding-bottom: 4rem; }
p { margin: .7rem 0; }
a { color: var(--c0); }
.lead { font-size: 1.1rem; color: var(--soft); }
.summary { padding-left: 1.2rem; }
.summary li { margin: .35rem 0; }
header dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .6rem 1.4rem;
  margin: 1.4rem 0 0; padding: .9rem 1.1rem; background: var(--panel); border-radius: 8px; }
header dl dt { font-size: .78rem; color: var(--soft); }
header dl dd { margin: 0; font-size: .92rem; line-height: 1.35; }
figure { margin: 1.4rem 0; }
figure div { overflow-x: auto; }
figure svg { display: block; width: 100%; min-width: 34rem; height: auto; }
figure svg text { font-family: inherit !important; }
.sound { display: grid; grid-template-columns: minmax(0, 20rem) 1fr; gap: .8rem; align-items: center; margin: .5rem 0; }
.sound audio { width: 100%; height: 2.4rem; }
figcaption, caption { color: var(--soft); font-size: .9rem; line-height: 1.45; text-align: left; }
figcaption { margin-top: .4rem; }
caption { padding-bottom: .5rem; }
.wide { overflow-x: auto; margin: 1.4rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; font-variant-numeric: tabular-nums; }
th, td { padding: .36rem .55rem; border-bottom: 1px solid var(--line); text-align: right; font-weight: 400;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--soft); font-size: .85rem; }
tr.strong th, tr.strong td { font-weight: 650; }
code { font: .88em/1.5 ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  background: var(--panel); padding: .1em .3em; border-radius: 4px; }
.next dt { margin-top: 1rem; overflow-x: auto; }
.next dt code { display: inline-block; padding: .35em .6em; white-space: pre; }
.next dd { margin: .25rem 0 0; color: var(--soft); }
"""
