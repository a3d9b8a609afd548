"""The guide: the README, the commented configuration and the documents beside it, as the package carries them, for a page to show."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

import receiver
from receiver.providers.loader import shipped_folder

START = ""
EXAMPLE = "Example."
NO_SLUG = re.compile(r"[^\w\- ]")


@dataclass(frozen=True)
class Document:
    """A file of the project as a page of the guide. `also` are other ways in which documents link to it."""

    name: str
    title: str
    file: str
    also: tuple[str, ...] = ()


DOCUMENTS = (
    Document(START, "Start", "README.md"),
    Document("settings", "Settings", "config/receiver.toml"),
    Document("providers", "Providers", "config/providers/README.md", ("config/providers",)),
    Document("deploy", "Deploying, metrics", "config/deploy/README.md", ("config/deploy",)),
    Document("errors", "Errors", "config/guide/errors.md"),
)
NAMES: Mapping[str, Document] = {document.name: document for document in DOCUMENTS}
PLACES: Mapping[str, str] = {place: document.name for document in DOCUMENTS for place in (document.file, *document.also)}


@dataclass
class Setting:
    """Lines of the configuration that one remark explains."""

    text: str
    is_example: bool
    lines: list[str] = field(default_factory=list)


@dataclass
class Section:
    """A table of the configuration, or what is said before the first one."""

    heading: str
    texts: list[str] = field(default_factory=list)
    settings: list[Setting] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        return slug(self.heading.strip("[]"))


@dataclass(frozen=True)
class Page:
    """A document as HTML. `headings` are those of its parts, by anchor; `sections` stand in place of `body` where it is a configuration."""

    document: Document
    body: str
    headings: Mapping[str, str]
    sections: Sequence[Section] = ()


@lru_cache(maxsize=len(DOCUMENTS))
def read_page(name: str) -> Page:
    """The page of this name; a KeyError where there is none."""
    document = NAMES[name]
    text = find_file(document.file).read_text(encoding="utf-8")
    if document.file.endswith(".toml"):
        sections = read_settings(text)
        return Page(document, "", {each.anchor: each.heading for each in sections if each.heading}, sections)
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    markdown.add_render_rule("fence", show_code)
    markdown.add_render_rule("code_block", show_code)
    tokens = markdown.parse(text)
    headings = number_headings(tokens)
    label_cells(tokens)
    for token in tokens:
        turn(token, document)
    return Page(document, markdown.renderer.render(tokens, markdown.options, {}), headings)


def find_file(name: str) -> Path:
    """A document of the project, in a checkout and installed."""
    if name.startswith("config/"):
        return shipped_folder().parent / name.removeprefix("config/")
    package = Path(receiver.__file__).parent
    inside = package / name
    return inside if inside.is_file() else package.parent / name


# Markdown


def slug(heading: str) -> str:
    """The anchor of a heading, as code hosts make it, so that a link means the same there and here."""
    return NO_SLUG.sub("", heading.lower()).replace(" ", "-")


def number_headings(tokens: Sequence[Token]) -> dict[str, str]:
    """Gives every heading its anchor; those of the second level come back."""
    found = {}
    for token, inner in pairwise(tokens):
        if token.type == "heading_open":
            words = "".join(child.content for child in inner.children or ())
            token.attrSet("id", slug(words))
            if token.tag == "h2":
                found[slug(words)] = words
    return found


def label_cells(tokens: Sequence[Token]) -> None:
    """Gives every cell of a table the words of its column's head: a phone shows them in front of it."""
    heads: list[str] = []
    column = 0
    for token, inner in pairwise(tokens):
        if token.type == "thead_open":
            heads = []
        elif token.type == "th_open":
            heads.append("".join(child.content for child in inner.children or ()))
        elif token.type == "tr_open":
            column = 0
        elif token.type == "td_open":
            if heads[column]:
                token.attrSet("data-label", heads[column])
            column += 1


def turn(token: Token, document: Document) -> None:
    """What a page wants otherwise than a file: links to its like, and room for what is wide."""
    if token.type == "table_open":
        token.attrSet("tabindex", "0")  # it may have to be scrolled without a mouse
    has_page = True
    for child in token.children or ():
        if child.type == "link_open":
            place = find_place(str(child.attrGet("href") or ""), document)
            has_page = place is not None
            child.attrSet("href", place or "")
        if child.type in ("link_open", "link_close") and not has_page:
            child.type, child.content, child.nesting = "text", "", 0


def show_code(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """Code that can be scrolled without a mouse."""
    return f'<pre tabindex="0"><code>{escape(tokens[index].content, quote=False)}</code></pre>\n'


def find_place(href: str, document: Document) -> str | None:
    """Where a link of a document leads from its page; None where there is no page for it."""
    if href.startswith(("https://", "http://", "#")):
        return href
    path, _, anchor = href.partition("#")
    name = PLACES.get(posixpath.normpath(posixpath.join(posixpath.dirname(document.file), path)))
    if name is None:
        return None
    return link(name, document.name) + (f"#{anchor}" if anchor else "")


def link(name: str, here: str) -> str:
    """From one page of the guide to another; right behind every prefix."""
    if here == START:
        return f"guide/{name}" if name else "guide"
    return name or "../guide"


# Settings


def read_settings(text: str) -> list[Section]:
    """The commented configuration: each remark with the settings right below it."""
    sections = [Section("")]
    remark: list[str] = []
    setting: Setting | None = None
    for line in text.splitlines():
        shown = line.removeprefix("#")
        if line.startswith("# "):
            if setting is not None:
                remark, setting = [], None
            remark.append(line[2:])
        elif not shown:
            if remark and setting is None:
                sections[-1].texts.append(inline(remark))
            remark, setting = [], None
        elif shown.startswith("[") and setting is None and remark[:1] != [EXAMPLE] and not " ".join(remark).startswith(EXAMPLE):
            sections.append(Section(shown, [inline(remark)] if remark else []))
            remark = []
        else:
            if setting is None:
                setting = make_setting(" ".join(remark))
                sections[-1].settings.append(setting)
            setting.lines.append(shown)
    return sections


def make_setting(remark: str) -> Setting:
    return Setting(inline([remark.removeprefix(EXAMPLE).strip()]), remark.startswith(EXAMPLE))


def inline(lines: Sequence[str]) -> str:
    """A remark as HTML."""
    text: Any = MarkdownIt("commonmark", {"html": False}).renderInline(" ".join(lines))
    return str(text)
