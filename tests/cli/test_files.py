"""Which files the arguments of a command mean."""

from __future__ import annotations

import io
import subprocess

import pytest

from stratakv.cli.errors import UsageError
from stratakv.cli.files import read_texts


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "project"
    for name, data in {
        "b.txt": b"second",
        "a/z.md": b"first \xff",
        "a.bin": b"\0\1",
        ".hidden/c.txt": b"no",
        "__pycache__/d.txt": b"no",
        "build/e.txt": b"made",
    }.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(data)
    return made


def names(*paths):
    return [file.name for file in read_texts(list(map(str, paths)))]


def test_a_folder_gives_its_texts_by_name(folder):
    assert names(folder) == ["project/b.txt", "project/a/z.md", "project/build/e.txt"]
    assert names(folder / "a" / "z.md", folder / "a") == ["z.md", "a/z.md"]
    assert next(iter(read_texts([str(folder / "a")]))).text == "first \ufffd"


def test_the_folder_that_a_person_is_in_has_its_name_too(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert names(".")[0] == "project/b.txt"


def test_a_repository_gives_what_git_would_commit(folder):
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    (folder / ".gitignore").write_text("build\n__pycache__\n")
    found = names(folder)
    assert set(found) == {"project/.gitignore", "project/.hidden/c.txt", "project/a/z.md", "project/b.txt"}
    assert names(folder / "a") == ["a/z.md"]
    # One that is tracked and gone is left out.
    subprocess.run(["git", "-C", str(folder), "add", "b.txt"], check=True)
    (folder / "b.txt").unlink()
    assert "project/b.txt" not in names(folder)


def test_standard_input_is_a_file_among_others(folder, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("piped"))
    files = list(read_texts(["-", str(folder / "b.txt")]))
    assert [(file.name, file.text) for file in files] == [("stdin", "piped"), ("b.txt", "second")]


def test_a_folder_without_text_is_an_error(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\0")
    with pytest.raises(UsageError, match="no text file in"):
        names(tmp_path)
