"""From where the steps of an answer looked to lines of files, and to a page that shows it."""

from __future__ import annotations

import re

import pytest
import torch

from stratakv.cli.documents import Document
from stratakv.cli.files import TextFile
from stratakv.cli.heat_map import page, write_page
from stratakv.cli.sources import Trace

FIRST = 5  # tokens before the document


@pytest.fixture
def document():
    return Document([TextFile(f"{name}.txt", "\n".join(f"{name} {n}" for n in range(60))) for name in "ab"])


class Looked:
    """A cache whose last step looked at some characters of a document of a token per character."""

    def __init__(self, document, *words):
        blocks = (FIRST + len(document.text)) // 16 + 9
        self.shares = torch.full((2, 3, blocks), 0.001)
        for word, share in words:
            self.shares[1, 2, (FIRST + document.text.index(word)) // 16] = share

    def attention_shares(self):
        return self.shares


def trace_of(document, *steps):
    trace = Trace(document, [(at, at + 1) for at in range(len(document.text))], FIRST)
    for words in steps:
        trace.note(Looked(document, *words))
    return trace


def test_the_lines_that_one_head_looked_at_come_first(document):
    trace = trace_of(document, [("a 30", 0.5)], [("b 40", 0.4), ("a 30", 0.2)])
    first, second = trace.sources(5)
    for source, name, line in ((first, "a.txt", 31), (second, "b.txt", 41)):
        assert source.lines.name == name
        assert source.lines.first <= line <= source.lines.last
    assert first.weight > second.weight
    assert first.weight + second.weight == pytest.approx(1, abs=0.01)
    assert [source.lines for source in trace.sources(1)] == [first.lines]
    assert trace.sources(0) == []


def test_neighbouring_blocks_are_one_source(document):
    trace = trace_of(document, [("a 30", 0.5), ("a 33", 0.45)])
    (source,) = trace.sources(3)
    assert source.lines.first <= 31
    assert source.lines.last >= 34


def test_a_step_that_read_everything_says_nothing(document):
    class Dense:
        def attention_shares(self):
            return None

    trace = Trace(document, [(0, 1)], 0)
    trace.note(Dense())
    assert trace.rows == []
    assert trace.sources(3) == []
    assert "too short" in page(trace, ["word"], "why?", 3)


def test_the_page_shows_rows_and_excerpts_and_escapes_them(document, tmp_path):
    trace = trace_of(document, [("a 30", 0.5)], [("b 40", 0.4)])
    write_page(str(tmp_path / "page.html"), trace, ["<one>", " two"], "what & why?", 2)
    text = (tmp_path / "page.html").read_text()
    assert (tmp_path / "page.html").stat().st_mode & 0o777 == 0o600
    assert "<h1>what &amp; why?</h1><p>&lt;one&gt; two</p>" in text
    assert "b 40" in text
    assert len(re.findall("<rect ", text)) >= 2
    assert "http" not in text
    assert "<script" not in text
