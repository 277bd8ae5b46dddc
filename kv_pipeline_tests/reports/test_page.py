"""Pages need nothing but themselves, and nothing in the data becomes markup."""

from __future__ import annotations

import base64
import gzip
import json
import re
from html.parser import HTMLParser

import polars as pl
import pytest

from kv_pipeline.reports import conversation_page
from kv_pipeline.reports.figures.requests import HIT_RATE
from kv_pipeline.reports.page.library import packed
from kv_pipeline.reports.page.shell import Column, Page, Section, Table, columns, render
from kv_pipeline_tests.reports.factories import request, requests

HOSTILE = [
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><b>bold</b>', "=cmd|'/c calc'!A1",
    "{{data}} {{library}}", "\u2028\u2029", "<!--", "ümläut 字",
]  # fmt: skip
EMPTY = {"br", "img", "input", "link", "meta"}


class Document(HTMLParser):
    """Elements, attributes and the text of scripts of a page."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in EMPTY:
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else ("", {}), data))

    def text_of(self, **wanted):
        return "".join(text for (_, attributes), text in self.texts if wanted.items() <= attributes.items())

    @property
    def data(self):
        return json.loads(self.text_of(id="data"))

    @property
    def library(self):
        return gzip.decompress(base64.b64decode(self.text_of(id="library"))).decode()


def page(name="ada/s", frame=None, **changes):
    frames = {"requests": requests(request(0, agent=name), request(1)) if frame is None else frame}
    table = Table("requests", "Requests", "requests", (Column("agent", "agent"), Column("t_s", "t", "seconds")))
    content = {
        "title": name, "subtitle": name, "definition": "hit rate = …", "tiles": [(name, name)],
        "sections": [Section(name, (HIT_RATE, table), name)], "frames": frames, "library": (HIT_RATE,),
        "home": (name, name), "footer": name,
    }  # fmt: skip
    return Page(**{**content, **changes})


@pytest.fixture(scope="module")
def documents(written):
    return [Document(path.read_text("utf-8")) for path in (written.index, *written.pages)]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_stay_text(name):
    plain, hostile = Document(render(page())), Document(render(page(name)))
    assert hostile.tags == plain.tags
    assert [a[:2] for a in hostile.attributes] == [a[:2] for a in plain.attributes]
    assert hostile.data["frames"]["requests"]["agent"][0] == name
    assert name.strip() in hostile.text_of(**{"class": "subtitle"})


def test_placeholders_in_data_are_not_filled():
    assert "{{data}} {{library}}" in Document(render(page("{{data}} {{library}}"))).text_of(**{"class": "note"})


def test_no_placeholder_is_left():
    assert re.findall(r"\{\{\w+\}\}", render(page())) == []


def test_pages_refer_to_nothing_outside(documents):
    for document in documents:
        addresses = [v for tag, name, v in document.attributes if name in {"src", "href", "action", "data", "srcset"}]
        local = re.compile(r"(#section-\d+|data:,|\.\./\.\./index\.html|conversations/[\w%./-]+\.html)\Z")
        assert [address for address in addresses if not local.match(address)] == []
        assert document.tags.count("script") == 3
        assert not {"iframe", "object", "embed", "base", "form"} & set(document.tags)


def test_pages_forbid_loading_anything(documents):
    for document in documents:
        policies = [v for tag, name, v in document.attributes if tag == "meta" and name == "content"]
        assert any(policy.startswith("default-src 'none'") for policy in policies)
        assert not any("http" in policy or "*" in policy for policy in policies)


def test_scripts_and_styles_name_no_addresses(documents):
    for document in documents:
        own = "".join(
            text for (tag, attributes), text in document.texts if tag in {"script", "style"} and not attributes
        )
        assert len(own) > 5_000
        assert re.findall(r"(?:https?:)?//[\w.-]+\.\w+|@import|url\(", own) == []


def test_the_library_loads_nothing_by_itself(documents):
    for document in {document.library for document in documents}:
        hosts = set(re.findall(r"https?://([\w.-]+)", document))
        # Namespaces of XML and schemas, and addresses in comments and messages; none of them is requested.
        assert hosts <= {"www.w3.org", "vega.github.io", "github.com", "developer.mozilla.org", "cdn.jsdelivr.net"}
        assert not re.search(r"\bimport\s*\(|importScripts|document\.write", document)
        assert "window.vega = " in document or "window.vega=" in document


def test_pages_are_small(written):
    for path in (written.index, *written.pages):
        assert path.stat().st_size < 400_000


def test_library_is_the_same_for_the_same_figures():
    assert packed(conversation_page.FIGURES) == packed(tuple(conversation_page.FIGURES))
    assert base64.b64decode(packed((HIT_RATE,)))[:2] == b"\x1f\x8b"


def test_figures_and_tables_with_nothing_to_show_are_left_out():
    document = Document(render(page(frame=requests(), sections=[Section("Empty", (HIT_RATE,))])))
    assert not [value for _, name, value in document.attributes if name == "data-figure"]
    assert "Empty" not in document.text_of()
    noted = Document(render(page(frame=requests(), sections=[Section("Empty", (HIT_RATE,), "Nothing yet.")])))
    assert "Nothing yet." in noted.text_of(**{"class": "note"})


def test_columns_are_json_without_nan():
    frame = pl.DataFrame({"x": [float("nan"), float("inf"), 1 / 3], "n": [1, None, 3]})
    assert columns(frame) == {"x": [None, None, 0.333333], "n": [1, None, 3]}
    json.dumps(columns(frame), allow_nan=False)


def test_data_holds_only_frames_that_are_shown():
    shown = Document(render(page(frames={"requests": requests(request(0)), "secret": requests(request(7))})))
    assert set(shown.data["frames"]) == {"requests"}
