"""`stratakv eval memory`."""

from __future__ import annotations

import json

import pytest

from stratakv.engram.embedders import minilm
from tests.eval.test_conversations import BEAM, LOCOMO, LONGMEMEVAL


@pytest.fixture
def file(tmp_path):
    def write(value):
        path = tmp_path / "file.json"
        path.write_text(json.dumps(value))
        return path

    return write


def test_what_is_recalled_is_counted(run_json, file):
    path = file([LOCOMO, LOCOMO | {"sample_id": "conv-2"}])
    words = ("--embedder", "none", "--k", "3,1")
    found = run_json("eval", "memory", path, "--format", "locomo", *words)
    assert found["settings"] == {"format": "locomo", "conversations": 2, "embedder": None}
    # The question without evidence is not counted.
    assert [one["conversation"] for one in found["results"]] == ["conv-1", "conv-2"]
    everything, multi_hop = found["summary"]
    assert everything["questions"] == multi_hop["questions"] == 2
    assert multi_hop["kind"] == "multi-hop"
    # "cat" is in a caption; of the other session nobody says a word of the question.
    assert (everything["turn@1"], everything["turn@3"], everything["evidence@3"]) == (0.5, 0.5, 0)
    assert everything["session@1"] == 0.5
    assert len(run_json("eval", "memory", path, "--format", "locomo", "--limit", 1, *words)["results"]) == 1


@pytest.mark.skipif(not minilm.is_installed(), reason="needs the offline embedder's wheel")
def test_other_forms_and_meaning(run_json, file):
    found = run_json("eval", "memory", file([LONGMEMEVAL] * 2), "--format", "longmemeval", "--k", "1")
    assert found["settings"]["embedder"]
    assert [one["turn@1"] for one in found["results"]] == [1, 1]
    found = run_json("eval", "memory", file(BEAM), "--format", "beam")
    assert [one["kind"] for one in found["summary"]] == ["all", "event_ordering"]
    assert found["summary"][0]["evidence@5"] == 1


def test_a_table_says_what_it_shows(run, file):
    code, shown, _ = run("eval", "memory", file(LOCOMO), "--format", "locomo", "--embedder", "none")
    assert code == 0
    head, everything, *_ = shown.splitlines()
    assert head.split()[:3] == ["kind", "questions", "turn@5"]
    assert everything.split()[:2] == ["all", "1"]
    assert "share of the turns with the answer" in shown


def test_what_is_not_accepted(run, file):
    for value, form, message in [
        (LOCOMO, "beam", "none of beam has no 'chat'"),
        (LOCOMO | {"qa": []}, "locomo", "no question with evidence"),
    ]:
        code, _, said = run("eval", "memory", file(value), "--format", form, "--embedder", "none")
        assert (code, message in said) == (2, True), said
    code, _, said = run("eval", "memory", "nowhere.json", "--format", "locomo")
    assert (code, "nowhere.json" in said) == (2, True), said
    assert run("eval", "memory", file(LOCOMO), "--format", "locomo", "--k", "0")[0] == 2
