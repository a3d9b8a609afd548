"""The guide: every page of it, from the files that the package carries, with links that lead somewhere."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from urllib.parse import urldefrag, urljoin

import pytest

from receiver.cli import codes
from receiver.errors import ReceiverError
from receiver.model import ErrorCode, Outcome
from receiver.web.guide import DOCUMENTS, find_file, read_page, read_settings
from receiver.web.problems import STATUSES
from tests.test_default_file import TABLES, settings
from tests.web.opened import open_web

PAGES = ["/guide" + (f"/{document.name}" if document.name else "") for document in DOCUMENTS]
ERRORS = find_file("config/guide/errors.md").read_text()


async def read(web, path):
    answer = await web.client.get(path)
    assert answer.status_code == 200, path
    return answer.text


async def test_the_guide_is_reached_from_every_page(tmp_path: Path):
    async with open_web(tmp_path) as web:
        assert 'href="./guide"' in await read(web, "/")
        assert 'href="../guide"' in await read(web, "/guide/settings")
        assert (await web.client.get("/guide/nothing")).status_code == 404


async def test_a_person_without_a_key_signs_in_first(tmp_path: Path):
    async with open_web(tmp_path, 'api_keys = ["first-api-key"]') as web:
        assert (await web.client.get("/guide", headers={"Accept": "text/html"})).status_code == 303


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_keeps_to_the_policy_and_is_one_article(tmp_path: Path, path):
    async with open_web(tmp_path) as web:
        answer = await web.client.get(path)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.search(r"<[^>]+ (style|on\w+)=|<script(?![^>]* src=)", answer.text)
    assert len(re.findall("<h1[ >]", answer.text)) == 1
    assert 'aria-current="page"' in answer.text
    assert len(answer.content) < 150_000


@pytest.mark.parametrize("path", PAGES)
async def test_every_link_leads_to_something(tmp_path: Path, path):
    async with open_web(tmp_path) as web:
        text = await read(web, path)
        links = {unescape(href) for href in re.findall(r'<a [^>]*href="([^"]*)"', text)}
        assert not links & {"", "#"}
        for href in links:
            if href.startswith(("https://", "http://")):
                continue
            place, anchor = urldefrag(urljoin(f"http://here{path}", href))
            found = await web.client.get(place.removeprefix("http://here") or "/")
            assert found.status_code == 200, href
            assert not anchor or f'id="{anchor}"' in found.text, href


async def test_code_stands_as_it_is_written(tmp_path: Path):
    async with open_web(tmp_path) as web:
        text = await read(web, "/guide")
    shown = [unescape(re.sub("<[^>]*>", "", block)) for block in re.findall("<pre.*?>(.*?)</pre>", text, re.DOTALL)]
    written = re.findall(r"```\w*\n(.*?)```", find_file("README.md").read_text(), re.DOTALL)
    assert shown == written


def test_a_document_cannot_bring_markup_of_its_own():
    (section,) = read_settings("# <b>bold</b> & `<i>`\n#key = 1\n")
    assert section.settings[0].text == "&lt;b&gt;bold&lt;/b&gt; &amp; <code>&lt;i&gt;</code>"


def shown_settings():
    """Each setting of the page by (table, key)."""
    for section in read_page("settings").sections:
        for setting in section.settings:
            table = section.heading
            for line in setting.lines:
                if line.startswith("["):
                    table = line
                else:
                    yield (table.strip("[]"), line.split(" = ")[0]), setting


def test_every_setting_is_there_with_its_value_and_what_it_means():
    shown = dict(shown_settings())
    for table, kind in TABLES.items():
        inner = {name.removeprefix(f"{table}.") for name, _ in shown if name.startswith(f"{table}.")}
        assert {key for name, key in shown if name == table} | inner == set(kind.__struct_fields__)
    assert [place for place, setting in shown.items() if not setting.text and not setting.is_example] == []
    assert {place for place, setting in shown.items() if setting.is_example} == {
        (table, key) for table, key, is_one in settings() if is_one and key
    }


def test_every_error_is_told():
    def cells(heading):
        part = ERRORS.split(f"## {heading}\n")[1].split("\n## ")[0]
        return re.findall(r"^\| `?(\w+)`?[ |]", part.split("|---", 1)[1], re.MULTILINE)

    assert cells("Why a job failed") == [str(code) for code in ErrorCode]
    assert {int(status) for status in cells("What a request is answered with")} >= set(STATUSES.values())
    assert set(cells("What became of a notice")) == {str(outcome) for outcome in Outcome}
    known = {value for name, value in vars(codes).items() if name.isupper()}
    assert {int(code) for code in cells("Exit codes of commands")} == known
    names = {each.__name__ for each in ReceiverError.__subclasses__()}
    told = set(cells("Why a delivery fails"))
    assert {"PermanentError", "RetryLater", "OutputGone"} <= told & names
