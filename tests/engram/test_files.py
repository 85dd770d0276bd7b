"""The commands of file-style memory tools: what they do, what they refuse, and that history stays."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.engram import AssistantMemory, Engram
from stratakv.engram.files import FileCommandError, MemoryFiles, check_path


@pytest.fixture
def memory(tmp_path):
    with Engram.open(tmp_path / "memory", embedder=None) as memory:
        yield memory


@pytest.fixture
def files(memory):
    return MemoryFiles(memory, user="ana")


def _do(files, command, **arguments):
    return files.call({"command": command, **arguments})


def test_the_commands_as_an_assistant_uses_them(files):
    assert _do(files, "view", path="/memories").splitlines()[1:] == ["0B\t/memories"]
    assert _do(files, "create", path="/memories/plan.md", file_text="one\ntwo\nthree\n").endswith(
        "/memories/plan.md"
    )
    _do(files, "create", path="/memories/shop/db/choice.md", file_text="Postgres")
    _do(files, "create", path="/memories/shop/notes.md", file_text="x" * 2048)
    assert _do(files, "view", path="/memories").splitlines()[1:] == [
        "2.0K\t/memories", "14B\t/memories/plan.md", "2.0K\t/memories/shop/", "8B\t/memories/shop/db/",
        "2.0K\t/memories/shop/notes.md",
    ]  # fmt: skip
    assert _do(files, "view", path="/memories/plan.md").splitlines()[1:] == [
        "     1\tone",
        "     2\ttwo",
        "     3\tthree",
    ]
    assert _do(files, "view", path="/memories/plan.md", view_range=[2, -1]).splitlines()[1:] == [
        "     2\ttwo", "     3\tthree",
    ]  # fmt: skip
    shown = _do(files, "str_replace", path="/memories/plan.md", old_str="two", new_str="2")
    assert "     2\t2" in shown
    _do(files, "insert", path="/memories/plan.md", insert_line=0, insert_text="zero")
    _do(files, "insert", path="/memories/plan.md", insert_line=4, insert_text="four")
    _do(files, "str_replace", path="/memories/plan.md", old_str="three\n")
    assert [text for _, _, text in files.history("/memories/plan.md")] == [
        "one\ntwo\nthree\n", "one\n2\nthree\n", "zero\none\n2\nthree\n", "zero\none\n2\nthree\nfour",
        "zero\none\n2\nfour",
    ]  # fmt: skip
    _do(files, "rename", old_path="/memories/shop", new_path="/memories/store")
    assert "Postgres" in _do(files, "view", path="/memories/store/db/choice.md")
    _do(files, "delete", path="/memories/store")
    assert _do(files, "view", path="/memories").splitlines()[1:] == [
        "15B\t/memories",
        "15B\t/memories/plan.md",
    ]


def test_every_edit_keeps_history(files, memory):
    _do(files, "create", path="/memories/a", file_text="first")
    _do(files, "create", path="/memories/a", file_text="second")
    _do(files, "rename", old_path="/memories/a", new_path="/memories/b/c")
    history = files.history("/memories/b/c")
    assert [(path, text) for _, path, text in history] == [
        ("/memories/a", "first"), ("/memories/a", "second"), ("/memories/b/c", "second"),
    ]  # fmt: skip
    assert all(when is not None for when, _, _ in history)
    _do(files, "delete", path="/memories/b")
    assert len(list(memory.list(user="ana", past=True))) == 3
    assert list(memory.list(user="ana")) == []
    _do(files, "create", path="/memories/a", file_text="anew")
    assert len(files.history("/memories/a")) == 1
    assert [one.text for one in memory.recall("anew", user="ana")] == ["anew"]


def test_empty_files_and_lines_without_an_end(files):
    _do(files, "create", path="/memories/empty", file_text="")
    assert _do(files, "view", path="/memories").splitlines()[-1] == "0B\t/memories/empty"
    _do(files, "insert", path="/memories/empty", insert_line=0, insert_text="a")
    _do(files, "insert", path="/memories/empty", insert_line=1, insert_text="b\n")
    assert files.history("/memories/empty")[-1][2] == "a\nb\n"
    _do(files, "str_replace", path="/memories/empty", old_str="a\nb\n", new_str="")
    assert files.history("/memories/empty")[-1][2] == ""


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "memories", "memories/a", "/etc/passwd", "/memoriesx", "/memories/../etc/passwd",
        "/memories/..", "/memories/./a", "/memories//a", "/memories/a/../../b", "\\memories\\a",
        "/memories/..\\a", "/memories/a\x00b", "/memories/a\nb", "/Memories/a", "C:/memories", None, 3,
        "/memories/" + "x" * 1024, "/memories/\ud800", "~/memories", "/memories/a/..",
    ],
)  # fmt: skip
def test_no_path_leaves_the_root(files, path):
    for command in (
        {"command": "create", "path": path, "file_text": "x"},
        {"command": "view", "path": path},
        {"command": "str_replace", "path": path, "old_str": "x", "new_str": "y"},
        {"command": "insert", "path": path, "insert_line": 0, "insert_text": "y"},
        {"command": "delete", "path": path},
        {"command": "rename", "old_path": path, "new_path": "/memories/b"},
        {"command": "rename", "old_path": "/memories/b", "new_path": path},
    ):
        text, failed = files.handle(command)
        assert failed
        assert text.startswith("Error: ")
    assert files.view().splitlines()[1:] == ["0B\t/memories"]


@given(st.text(alphabet="/.\\ameoris\x00 é", max_size=30))
def test_a_path_that_is_accepted_is_under_the_root(tail):
    try:
        path = check_path("/memories" + tail)
    except FileCommandError:
        return
    assert path == "/memories" or path.startswith("/memories/")
    assert not {"", ".", ".."} & set(path.split("/")[1:])


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ({"command": "dance"}, "accepted are view, create"),
        ({}, "no command None"),
        ({"command": "create", "path": "/memories/x"}, r"missing \['file_text'\]"),
        ({"command": "view", "path": "/memories", "depth": 2}, r"unknown \['depth'\]"),
        ({"command": "view", "path": "/memories/x"}, "does not exist"),
        ({"command": "view", "path": "/memories/a", "view_range": [0, 1]}, "expected .first, last."),
        ({"command": "view", "path": "/memories/a", "view_range": [2, 1]}, "expected .first, last."),
        ({"command": "view", "path": "/memories/a", "view_range": "all"}, "expected .first, last."),
        ({"command": "view", "path": "/memories", "view_range": [1, 2]}, "is not a file"),
        ({"command": "create", "path": "/memories", "file_text": "x"}, "is the root"),
        ({"command": "create", "path": "/memories/d", "file_text": "x"}, "is a directory"),
        ({"command": "create", "path": "/memories/a/b", "file_text": "x"}, "/memories/a is a file"),
        ({"command": "create", "path": "/memories/x", "file_text": 3}, "file_text=3: expected text"),
        (
            {"command": "create", "path": "/memories/x", "file_text": "x" * (1 << 20) + "x"},
            "more than 1048576",
        ),
        (
            {"command": "str_replace", "path": "/memories/a", "old_str": "zz", "new_str": ""},
            "does not stand in",
        ),
        (
            {"command": "str_replace", "path": "/memories/a", "old_str": "", "new_str": "x"},
            "does not stand in",
        ),
        (
            {"command": "str_replace", "path": "/memories/a", "old_str": "x", "new_str": ""},
            "3 times .* lines 1, 1, 2",
        ),
        ({"command": "str_replace", "path": "/memories/d", "old_str": "x", "new_str": ""}, "is a directory"),
        (
            {"command": "insert", "path": "/memories/a", "insert_line": 3, "insert_text": "x"},
            "accepted are 0 to 2",
        ),
        (
            {"command": "insert", "path": "/memories/a", "insert_line": "1", "insert_text": "x"},
            "whole number",
        ),
        ({"command": "delete", "path": "/memories/x"}, "does not exist"),
        ({"command": "delete", "path": "/memories"}, "is the root"),
        ({"command": "rename", "old_path": "/memories/x", "new_path": "/memories/y"}, "does not exist"),
        ({"command": "rename", "old_path": "/memories/a", "new_path": "/memories/d"}, "already exists"),
        ({"command": "rename", "old_path": "/memories/d", "new_path": "/memories/d/e"}, "is within"),
        (
            {"command": "rename", "old_path": "/memories/d", "new_path": "/memories/a/e"},
            "/memories/a is a file",
        ),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(files, command, said):
    files.create("/memories/a", "x x\nx\n")
    files.create("/memories/d/b", "y")
    before = files.view()
    with pytest.raises(FileCommandError, match=said):
        files.call(command)
    assert files.view() == before


def test_users_and_projects_have_files_of_their_own(memory, files):
    files.create("/memories/a", "of ana's")
    shop = MemoryFiles(memory, user="ana", project="shop")
    bob = MemoryFiles(memory, user="bob")
    for other in (shop, bob):
        assert other.handle({"command": "view", "path": "/memories/a"})[1]
        other.create("/memories/a", "mine")
    assert "of ana's" in files.view("/memories/a")
    files.delete("/memories/a")
    assert "mine" in shop.view("/memories/a")
    assert "mine" in bob.view("/memories/a")


def test_the_policy_holds_for_files(tmp_path):
    with AssistantMemory.open(tmp_path, embedder=None, background=False) as memory:
        files = MemoryFiles(memory, user="ana")
        files.create("/memories/a", "card 4111111111111111")
        assert "[card number]" in files.view("/memories/a")
        text, failed = files.handle(
            {"command": "create", "path": "/memories/b", "file_text": "-----BEGIN PRIVATE KEY-----"}
        )
        assert failed
        assert "private key" in text
        assert memory.profile(user="ana").text == ""


def test_async_twins(files):
    async def work():
        await asyncio.gather(
            *(
                files.acall({"command": "create", "path": f"/memories/{number}", "file_text": "x"})
                for number in range(10)
            )
        )
        return await files.ahandle({"command": "view", "path": "/memories"})

    text, failed = asyncio.run(work())
    assert not failed
    assert len(text.splitlines()) == 12


NAMES = st.sampled_from(["a", "b", "a/b", "a/c", "b/c/d"])
TEXTS = st.text(alphabet="xy\n", max_size=6)
STEPS = st.one_of(
    st.tuples(st.just("create"), NAMES, TEXTS),
    st.tuples(st.just("delete"), NAMES),
    st.tuples(st.just("rename"), NAMES, NAMES),
    st.tuples(st.just("str_replace"), NAMES, st.sampled_from(["x", "y", "xy"]), TEXTS),
)


def _model(state, step):
    """The same on a dict; None where it cannot be done."""
    state = dict(state)
    name, path, *rest = step
    below = [one for one in state if one == path or one.startswith(path + "/")]

    def clashes(target, others):
        through = any(target.startswith(other + "/") for other in others)
        return through or (target not in others and any(other.startswith(target + "/") for other in others))

    if name == "create":
        if clashes(path, state):
            return None
        state[path] = rest[0]
    elif name == "delete":
        if not below:
            return None
        for one in below:
            del state[one]
    elif name == "rename":
        taken = [one for one in state if one == rest[0] or one.startswith(rest[0] + "/")]
        if not below or taken or rest[0].startswith(path + "/"):
            return None
        moved = {rest[0] + one[len(path) :]: state.pop(one) for one in below}
        if any(clashes(one, state) for one in moved):
            return None
        state |= moved
    else:
        if path not in state or state[path].count(rest[0]) != 1:
            return None
        state[path] = state[path].replace(*rest)
    return state


@settings(max_examples=60)
@given(st.lists(STEPS, max_size=12))
def test_it_is_as_a_dict_of_files(tmp_path_factory, steps):
    arguments = {
        "create": ("path", "file_text"),
        "delete": ("path",),
        "rename": ("old_path", "new_path"),
        "str_replace": ("path", "old_str", "new_str"),
    }
    state: dict[str, str] = {}
    with Engram.open(tmp_path_factory.mktemp("files"), embedder=None, durable=False) as memory:
        files = MemoryFiles(memory, user="ana")
        for step in steps:
            values = [
                f"/memories/{value}" if key.endswith("path") else value
                for key, value in zip(arguments[step[0]], step[1:], strict=True)
            ]
            call = {"command": step[0], **dict(zip(arguments[step[0]], values, strict=True))}
            expected = _model(state, step)
            _, failed = files.handle(call)
            assert failed == (expected is None)
            state = state if expected is None else expected
            stored = {path: files.history(path)[-1][2] for path in files._files()}
            assert stored == {f"/memories/{path}": text for path, text in state.items()}
