"""The server over stdio, as a client of the protocol's own SDK meets it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

import stratakv
from stratakv.engram import AssistantMemory

pytest.importorskip("mcp")

from mcp import Client, StdioServerParameters

from stratakv.engram.server import make_server

SOURCES = str(Path(stratakv.__file__).parents[1])


def _parameters(directory, *more, user="ana"):
    arguments = ["-m", "stratakv", "memory", "serve", "--directory", str(directory), "--user", user]
    return StdioServerParameters(
        command=sys.executable, args=[*arguments, "--embedder", "none", *more], env={"PYTHONPATH": SOURCES}
    )


def _text(result):
    return " ".join(block.text for block in result.content)


def _talk(server, conversation):
    async def talk():
        async with Client(server, read_timeout_seconds=60) as client:
            return await conversation(client)

    return asyncio.run(talk())


def test_a_client_remembers_recalls_lists_and_forgets_over_stdio(tmp_path):
    async def first(client):
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == {"remember", "recall", "forget", "list"}
        assert all("user" not in tool.input_schema["properties"] for tool in tools.values())
        assert tools["recall"].annotations.read_only_hint
        assert tools["forget"].annotations.destructive_hint
        made = await client.call_tool("remember", {"text": "We use Postgres", "kind": "decision"})
        assert not made.is_error, _text(made)
        number = made.structured_content["id"]
        newer = await client.call_tool("remember", {"text": "We use SQLite", "replaces": number})
        await client.call_tool("remember", {"text": "Always answer in German", "kind": "instruction"})
        found = await client.call_tool("recall", {"query": "what do we use?", "k": 2})
        (told,) = found.structured_content["result"]
        assert (told["text"], told["source"]) == ("We use SQLite", "mcp")
        assert told["score"] > 0
        profile = await client.read_resource("memory://profile")
        assert "- Always answer in German" in profile.contents[0].text
        return newer.structured_content["id"]

    async def second(client):
        listed = (await client.call_tool("list", {"limit": 1})).structured_content
        assert [one["text"] for one in listed["memories"]] == ["We use SQLite"]
        rest = (await client.call_tool("list", {"after": listed["next_after"]})).structured_content
        assert [one["text"] for one in rest["memories"]] == ["Always answer in German"]
        assert rest["next_after"] is None
        kinds = (await client.call_tool("list", {"kind": "instruction"})).structured_content
        assert len(kinds["memories"]) == 1
        assert "2 records" in _text(await client.call_tool("forget", {"id": number}))
        assert (await client.call_tool("recall", {"query": "SQLite"})).structured_content["result"] == []

    number = _talk(_parameters(tmp_path), first)
    _talk(_parameters(tmp_path), second)
    assert not any(b"SQLite" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_it_serves_one_user_whatever_is_asked(tmp_path):
    with AssistantMemory.open(tmp_path, embedder=None) as memory:
        theirs = memory.remember("the secret is blue", user="bob")

    async def ask(client):
        for name, arguments in (
            ("recall", {"query": "secret", "user": "bob"}),
            ("list", {"user": "bob"}),
        ):
            assert "blue" not in _text(await client.call_tool(name, arguments))
        refused = await client.call_tool("forget", {"id": theirs})
        assert refused.is_error
        assert str(theirs) in _text(refused)

    _talk(_parameters(tmp_path), ask)
    with AssistantMemory.open(tmp_path, embedder=None) as memory:
        assert len(list(memory.list(user="bob"))) == 1


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("remember", {"text": ""}, "text"),
        ("remember", {"text": "x", "kind": "rumour"}, "rumour"),
        ("remember", {"text": "x", "replaces": 99}, "99"),
        ("remember", {"text": "-----BEGIN PRIVATE KEY-----"}, "private key"),
        ("recall", {"query": "x", "k": 0}, "1 to 50"),
        ("list", {"limit": 1000}, "1 to 200"),
        ("forget", {}, "id"),
    ],
)
def test_mistakes_are_told_to_the_assistant(tmp_path, tool, arguments, said):
    with AssistantMemory.open(tmp_path, embedder=None, background=False) as memory:
        server = make_server(memory, user="ana")

        async def ask(client):
            result = await client.call_tool(tool, arguments)
            assert result.is_error
            assert said in _text(result)

        _talk(server, ask)
        assert memory.stats(user="ana")["memories"] == 0


def test_projects_are_apart(tmp_path):
    with AssistantMemory.open(tmp_path, embedder=None, background=False) as memory:
        memory.remember("of another project", user="ana", project="b")

        async def ask(client):
            await client.call_tool("remember", {"text": "of this project"})
            listed = (await client.call_tool("list", {})).structured_content
            assert [one["text"] for one in listed["memories"]] == ["of this project"]

        _talk(make_server(memory, user="ana", project="a"), ask)
        assert [one.scope.project for one in memory.list(user="ana")] == ["b", "a"]
        with pytest.raises(ValueError, match="user is empty"):
            make_server(memory, user="")


def test_kinds_are_the_same_wherever_they_are_named():
    from typing import get_args

    from stratakv.cli import memory as command
    from stratakv.engram import facts, server

    assert get_args(server.Kind) == command.KINDS == facts.KINDS
