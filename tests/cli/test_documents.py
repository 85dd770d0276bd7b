"""From a place in several files' text back to a file and its lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratakv.cli.documents import Document
from stratakv.cli.files import TextFile

FILES = [TextFile("a.txt", "one\ntwo\n\nfour"), TextFile("b/c.txt", ""), TextFile("d.txt", "\n\nthird\n")]


@pytest.mark.parametrize(
    ("words", "lines"),
    [("one", "a.txt:1"), ("two\n\nfour", "a.txt:2-4"), ("\n\nfour", "a.txt:4"), ("third\n", "d.txt:3")],
)
def test_words_are_found_on_their_lines(words, lines):
    document = Document(FILES)
    start = document.text.index(words)
    assert str(document.lines(start, start + len(words))) == lines


@pytest.mark.parametrize("words", ["File a.txt", "File b/c.txt:\n\n", "File d"])
def test_headings_are_no_lines_of_a_file(words):
    document = Document(FILES)
    start = document.text.index(words)
    assert document.lines(start, start + len(words)) is None


@given(st.lists(st.text(alphabet="ab \n", max_size=30), min_size=1, max_size=5), st.data())
def test_a_piece_of_a_file_is_on_the_lines_that_hold_it(texts, data):
    files = [TextFile(f"{index}.txt", text) for index, text in enumerate(texts)]
    document = Document(files)
    chosen = data.draw(st.sampled_from(range(len(texts))))
    text = texts[chosen]
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, len(text)))
    before = sum(len(f"File {file.name}:\n\n{file.text}\n\n") for file in files[:chosen])
    at = before + len(f"File {chosen}.txt:\n\n")
    found = document.lines(at + start, at + stop)
    words = text[start:stop].strip("\n")
    if not words:
        assert found is None or stop == start
        return
    assert found is not None
    assert found.name == f"{chosen}.txt"
    lines = text.split("\n")[found.first - 1 : found.last]
    assert words in "\n".join(lines)
    assert len(lines) == words.count("\n") + 1
