"""StrataLM with conditional memories: the same with and without caches, in pieces, padded, resumed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import stratakv
from stratakv.nn import MemoryConfig, StrataLM, TransformerConfig, compress_vocabulary
from tests.nn import tiny

VOCAB = 61
MEMORY = MemoryConfig(
    layers=(0, 2), compressed_size=40, table_sizes=(97, 101), num_heads=2, ngram_dim=8, pad_id=7, seed=3
)

SIZES = tiny.SIZES | {"vocab_size": VOCAB, "memory": MEMORY}


def strata_lm(**options):
    """All parameters away from where they start; tables so large that memories decide what comes next."""
    torch.manual_seed(5)
    model = StrataLM(TransformerConfig(**(SIZES | options)), torch.randint(40, (VOCAB,)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (1.0 if "table" in name or "conv" in name else 0.15))
    return model.eval()


def hf_model(**options):
    from stratakv.hf import StrataForCausalLM

    return StrataForCausalLM.from_strata_lm(strata_lm(**options), pad_token_id=0).eval()


def ids(rows, length, seed=0):
    return torch.randint(1, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def generated(model, tokens, cache=None, num=20, **options):
    from stratakv.hf.library import cache_kwargs

    options = {"attention_mask": torch.ones_like(tokens)} | options
    options |= {} if cache is None else cache_kwargs(cache)
    with torch.no_grad():
        return model.generate(tokens, max_new_tokens=num, min_new_tokens=num, do_sample=False, **options)


def without_cache(model, tokens, num=20):
    with torch.no_grad():
        for _ in range(num):
            best = model(tokens, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, best], -1)
    return tokens


def in_pieces(model, tokens, cache, sizes):
    from stratakv.hf.library import cache_kwargs

    with torch.no_grad():
        parts = [model(part, **cache_kwargs(cache)).logits for part in tokens.split(sizes, 1)]
    return torch.cat(parts, 1)


@pytest.mark.hf
@pytest.mark.parametrize("streams", [1, 4])
def test_is_the_same_in_transformers(streams):
    from stratakv.hf import StrataForCausalLM

    model = strata_lm(num_streams=streams)
    twin = StrataForCausalLM.from_strata_lm(model).eval()
    assert twin.config.transformer() == model.config
    tokens = ids(2, 21)
    with torch.no_grad():
        torch.testing.assert_close(twin(tokens).logits, model(tokens), rtol=1e-5, atol=1e-5)


def test_the_memory_counts_and_learns():
    model = strata_lm()
    tokens = ids(2, 24)
    with torch.no_grad():
        seen = model(tokens)
        for block in model.model.layers:
            if block.memory is not None:
                block.memory.table.weight.zero_()
                block.memory.value.bias.zero_()
        assert (model(tokens) - seen).abs().max() > 0.1
    model = strata_lm()
    model.loss(tokens).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.loss(tokens, recompute="blocks").backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


def test_a_new_memory_has_the_usual_initial_values():
    torch.manual_seed(0)
    model = StrataLM(TransformerConfig(**SIZES))
    memory = model.model.layers[2].memory
    assert model.model.layers[1].memory is None
    assert abs(float(memory.table.weight.detach().std()) - 0.02) < 2e-3
    assert torch.equal(memory.key_norm, torch.ones(4, 32))
    assert not memory.conv.detach().any()
    assert not memory.value.bias.detach().any()


@pytest.mark.hf
def test_made_from_a_config_it_has_them_too():
    from stratakv.hf import StrataConfig, StrataForCausalLM

    torch.manual_seed(1)
    model = StrataForCausalLM(StrataConfig.from_transformer(TransformerConfig(**SIZES)))
    memory = model.model.layers[0].memory
    assert torch.equal(memory.query_norm, torch.ones(4, 32))
    assert not memory.conv.detach().any()
    assert memory.offsets.tolist() == MEMORY.plans()[0].offsets
    assert abs(float(memory.key.weight.detach().std()) - 0.02) < 2e-3


@pytest.mark.hf
@pytest.mark.parametrize("sizes", [40, 1, 7, [1, 30, 9], [33, 1, 1, 5]])
def test_pieces_through_each_cache_equal_the_whole(tmp_path, sizes):
    from transformers import DynamicCache

    model, tokens = hf_model(), ids(2, 40)
    with torch.no_grad():
        whole = model(tokens, use_cache=False).logits
    close = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(in_pieces(model, tokens, DynamicCache(), sizes), whole, **close)
    torch.testing.assert_close(
        in_pieces(model, tokens, DynamicCache(config=model.config), sizes), whole, **close
    )
    with stratakv.TieredCache(model.config, ram="1MiB", disk=tmp_path / "pages", page_tokens=16) as cache:
        torch.testing.assert_close(in_pieces(model, tokens, cache, sizes), whole, **close)


@pytest.mark.hf
@pytest.mark.parametrize(
    "options", [{}, {"prefill_chunk_size": 8}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 3}]
)
def test_generation_equals_no_cache(tmp_path, options):
    from transformers import DynamicCache

    model = hf_model()
    # What comes again is what prompt lookup proposes, and takes back.
    tokens = ids(1, 12).repeat(1, 3)
    expected = generated(model, tokens, DynamicCache(config=model.config), **options)
    if "num_beams" not in options:
        assert torch.equal(expected, without_cache(model, tokens))
    with stratakv.TieredCache(model.config, ram="1MiB", disk=tmp_path / "pages", page_tokens=16) as cache:
        assert torch.equal(generated(model, tokens, cache, **options), expected)


@pytest.mark.hf
def test_padded_batches_equal_single_rows():
    model = hf_model()
    long, short = ids(1, 20, seed=1), ids(1, 13, seed=2)
    padded = torch.cat([long, torch.cat([torch.zeros(1, 7, dtype=torch.long), short], -1)])
    both = generated(model, padded, attention_mask=(padded != 0).long())
    assert torch.equal(both[0], without_cache(model, long)[0])
    assert torch.equal(both[1, 7:], without_cache(model, short)[0])


@pytest.mark.hf
@pytest.mark.parametrize("attached", [False, True])
def test_resumed_sessions_go_on_as_if_they_had_not_stopped(tmp_path, attached):
    model, tokens = hf_model(), ids(1, 50)
    expected = without_cache(model, tokens, 40)
    handle = stratakv.attach(model) if attached else None
    with stratakv.TieredCache.open(model, tmp_path, name="a", page_tokens=16) as cache:
        part = generated(model, tokens, cache, 15)
        cache.save()
    with stratakv.TieredCache.open(model, tmp_path, name="a", page_tokens=16) as cache:
        assert cache.get_seq_length() == 63
        fork = cache.fork()
        part = generated(model, part, cache, 10)
        cache.save()
        assert torch.equal(generated(model, part[:, :65], fork, 25), expected)
        fork.close()
    with stratakv.TieredCache.open(model, tmp_path, name="a", page_tokens=16) as cache:
        assert torch.equal(generated(model, part, cache, 15), expected)
    if handle is not None:
        handle.detach()


@pytest.mark.hf
def test_stepping_back_and_matching(tmp_path):
    model, tokens = hf_model(), ids(1, 60)
    other = tokens.clone()
    other[:, 41:] = ids(1, 19, seed=9)
    with stratakv.TieredCache.open(model, tmp_path, name="a", page_tokens=16) as cache:
        generated(model, tokens, cache, 4)
        cache.save()
        assert cache.match(other) == 41
        assert torch.equal(generated(model, other, cache), without_cache(model, other))
        cache.reset()
        assert torch.equal(generated(model, tokens, cache), without_cache(model, tokens))
    # Pages of others come without what a memory needs, so they are not taken.
    with stratakv.TieredCache.open(model, tmp_path, page_tokens=16) as cache:
        assert cache.match(tokens) == 0
        assert torch.equal(generated(model, tokens, cache), without_cache(model, tokens))


@pytest.mark.hf
@pytest.mark.parametrize("place", ["layers.2.memory", "layers.0.memory", "layers.1.self_attn"])
def test_an_interrupted_pass_is_undone(tmp_path, place, monkeypatch):
    model, tokens = hf_model(), ids(1, 40)
    with stratakv.TieredCache.open(model, tmp_path, name="a", page_tokens=16) as cache:
        generated(model, tokens, cache, 2)

        def interrupt(*_):
            raise KeyboardInterrupt

        hook = model.model.get_submodule(place).register_forward_hook(interrupt)
        more = torch.cat([tokens, ids(1, 9, seed=4)], -1)
        cache.match(more)
        with pytest.raises(KeyboardInterrupt):
            generated(model, more, cache, 2)
        hook.remove()
        assert cache.match(more) == 40
        assert torch.equal(generated(model, more, cache), without_cache(model, more))


@pytest.mark.hf
def test_attached_and_sparse(tmp_path):
    model, tokens = hf_model(), ids(1, 150)
    expected = generated(model, tokens)
    with stratakv.attach(model):
        with stratakv.TieredCache.open(model, tmp_path / "dense", page_tokens=16) as cache:
            assert torch.equal(generated(model, tokens, cache), expected)
        selection = stratakv.Selection(budget=64, sinks=16, window=16, dense_below=64, unread=1.0)
        with stratakv.TieredCache.open(model, None, page_tokens=16, budget=selection) as cache:
            assert generated(model, tokens, cache).shape == expected.shape
            assert cache.stats()["cache"]["read_tokens"] <= 64


@pytest.mark.hf
def test_saved_and_loaded_in_a_fresh_process(tmp_path):
    model, tokens = hf_model(), ids(1, 30)
    model.save_pretrained(tmp_path)
    code = (
        "import torch, stratakv.hf\n"
        "from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r}).eval()\n"
        f"with torch.no_grad(): logits = model(torch.tensor({tokens.tolist()})).logits\n"
        f"torch.save(logits, {str(tmp_path / 'logits.pt')!r})\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), model(tokens).logits)


@pytest.mark.hf
def test_what_is_refused(tmp_path):
    from transformers import DynamicCache

    from stratakv.hf.library import cache_kwargs

    for options, message in [
        ({"memory": MemoryConfig(layers=(3,), compressed_size=40)}, "blocks 0 to 2"),
        ({"memory": MemoryConfig(layers=(0,), compressed_size=62)}, None),
    ]:
        if message is not None:
            with pytest.raises(ValueError, match=message):
                TransformerConfig(**(SIZES | options))
    with pytest.raises(ValueError, match="at most once"):
        MemoryConfig(layers=(1, 1), compressed_size=4)
    with pytest.raises(ValueError, match="at least one layer"):
        MemoryConfig(layers=(), compressed_size=4)
    with pytest.raises(ValueError, match="ids up to 45"):
        StrataLM(TransformerConfig(**SIZES), torch.full((VOCAB,), 45))
    with pytest.raises(ValueError, match="a vocabulary of 3 tokens"):
        StrataLM(TransformerConfig(**SIZES), compress_vocabulary(["a", "b", "c"], ["a", "b", "c"]))
    model, tokens = hf_model(), ids(1, 8)
    with pytest.raises(ValueError, match="memory_ids beside"):
        model(inputs_embeds=torch.zeros(1, 3, 32))
    plain = hf_model(memory=None)
    cache = DynamicCache(config=plain.config)
    with torch.no_grad():
        plain(tokens, **cache_kwargs(cache))
        with pytest.raises(ValueError, match="memories have not seen"):
            model(tokens, **cache_kwargs(cache))
    other = hf_model(memory=MemoryConfig(layers=(1,), compressed_size=61, table_sizes=(31,), ngram_dim=8))
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(tokens, **cache_kwargs(cache))
        with pytest.raises(ValueError, match="of another model"):
            other(tokens, **cache_kwargs(cache))
