"""The README's first code runs as it stands, and is as short as it says."""

import re
import warnings
from pathlib import Path

import pytest
import torch

README = (Path(__file__).parents[1] / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SNIPPET, SPARSE_SNIPPET, FP8_SNIPPET, NN_SNIPPET, MEMORY_SNIPPET = SNIPPETS


def tiny_llama():
    """A model and what its `generate` is given."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, pad_token_id=0, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(3, 64, (1, 100))
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": 4,
        "do_sample": False,
    }
    return model, inputs


@pytest.mark.hf
def test_the_first_snippet_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, inputs = tiny_llama()
    import stratakv
    from stratakv.hf.compat import CACHE_ARGUMENT

    # Releases before 5.24 are given what the snippet's comment says.
    code = SNIPPET.replace(" cache=cache)", f" {CACHE_ARGUMENT}=cache)")
    exec(compile(code, "README.md", "exec"), {"model": model, "inputs": inputs})
    with stratakv.TieredCache.open(model, "sessions/", name="my-repo") as cache:
        assert cache.get_seq_length() > 100


@pytest.mark.hf
def test_the_sparse_snippet_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model, inputs = tiny_llama()
    import stratakv
    from stratakv.hf.compat import CACHE_ARGUMENT

    code = SPARSE_SNIPPET.replace(" cache=cache)", f" {CACHE_ARGUMENT}=cache)")
    names = {"stratakv": stratakv, "model": model, "inputs": inputs}
    exec(compile(code, "README.md", "exec"), names)
    assert "'budget': 1024" in capsys.readouterr().out
    names["cache"].close()


@pytest.mark.hf
def test_the_fp8_snippet_runs(capsys):
    import stratakv

    model, inputs = tiny_llama()
    before = dict(model.named_parameters())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no FP8 products here")
        exec(
            compile(FP8_SNIPPET, "README.md", "exec"),
            {"stratakv": stratakv, "model": model, "inputs": inputs},
        )
    assert "fp8: backend " in capsys.readouterr().out
    assert all(dict(model.named_parameters())[name] is parameter for name, parameter in before.items())


def test_the_first_snippet_is_short():
    code = [line for line in SNIPPET.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(code) <= 12


def test_the_table_shows_the_measured_figures():
    from benches import table

    assert table.is_current(), "run: python -m benches.figures --table"


def test_what_the_readme_names_exists():
    root = Path(__file__).parents[1]
    named = re.findall(r"\((docs/[\w./-]+)\)|`((?:python|rust|benches)/[\w./-]+)`", README)
    assert len(named) >= 7
    for pair in named:
        name = next(filter(None, pair))
        assert (root / name).exists(), name


def test_the_hyper_connections_snippet_runs(capsys):
    exec(compile(NN_SNIPPET, "README.md", "exec"), {"input_ids": torch.randint(512, (2, 16))})
    assert capsys.readouterr().out.count("connection") == 9


def test_the_snippet_of_the_hyper_connections_page_runs():
    page = (Path(__file__).parents[1] / "docs" / "mhc.md").read_text()
    snippet = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    names = {"embedded": torch.randn(2, 3, 512), "branches": [torch.tanh] * 16}
    exec(compile(snippet, "mhc.md", "exec"), names)
    assert names["h"].shape == (2, 3, 512)


def test_the_memory_snippet_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(MEMORY_SNIPPET, "README.md", "exec"), names)
    block = capsys.readouterr().out
    assert "- Always answer in German." in block
    assert "We chose Postgres over MySQL because of JSONB." in block
    assert names["memory"].users() == []
    names["memory"].close()
