"""Sessions: what is saved comes back, in this process and in a new one, and traps are named."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from stratakv import TieredCache
from stratakv.errors import AlreadyCoveredError, SettingsMismatchError
from stratakv.hf.compat import CACHE_ARGUMENT, cache_kwargs
from tests.hf.tiny_models import build, prompt

pytestmark = pytest.mark.hf

OPTIONS = {"ram": "64KiB", "page_tokens": 4}
ROOT = Path(__file__).parents[2]


def _generate(model, ids, cache=None, new=10, **more):
    cache = DynamicCache(config=model.config) if cache is None else cache
    # A generated 0 would be taken for padding; a mask is only given where one is needed.
    if bool((ids == 0).any()):
        more.setdefault("attention_mask", torch.ones_like(ids))
    return model.generate(ids, **cache_kwargs(cache), max_new_tokens=new, do_sample=False, **more)


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral_sliding", "qwen3_next", "gpt2"])
def test_resume_and_go_on(name, tmp_path):
    """Save, close, open, and continue the text: the same tokens as without a break."""
    model = build(name)
    if name == "mistral_sliding":
        pytest.skip("no full-attention layer: nothing is paged")
    first = _generate(model, prompt(22))
    longer = torch.cat([first, prompt(5, seed=3)], 1)
    expected = _generate(model, longer)
    with TieredCache.open(model, tmp_path, name="talk", **OPTIONS) as cache:
        assert torch.equal(_generate(model, prompt(22), cache), first)
        assert cache.token_ids == first[0, :-1].tolist()
        cache.save()
    with TieredCache.open(model, tmp_path, name="talk", ram="64KiB") as cache:
        held = cache.get_seq_length()
        assert held in (first.shape[1] - 1, first.shape[1] - 2)
        assert torch.equal(_generate(model, longer, cache), expected)


def test_resume_in_a_new_process(tmp_path):
    model = build("gemma3")
    first = _generate(model, prompt(22))
    expected = _generate(model, torch.cat([first, prompt(5, seed=3)], 1))
    with TieredCache.open(model, tmp_path, name="talk", **OPTIONS) as cache:
        _generate(model, prompt(22), cache)
        cache.save()
    code = f"""
        import torch
        from stratakv import TieredCache
        from stratakv.hf.compat import cache_kwargs
        from tests.hf.tiny_models import build, prompt
        model = build("gemma3")
        ids = torch.tensor({first.tolist()})
        with TieredCache.open(model, {str(tmp_path)!r}, name="talk", ram="64KiB") as cache:
            assert cache.get_seq_length() == {first.shape[1] - 1}, cache.get_seq_length()
            ids = torch.cat([ids, prompt(5, seed=3)], 1)
            mask = torch.ones_like(ids)
            options = {{"attention_mask": mask, "max_new_tokens": 10, "do_sample": False}}
            out = model.generate(ids, **cache_kwargs(cache), **options)
            print(out[0].tolist())
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(expected[0].tolist())


def test_generate_with_exactly_the_saved_ids(tmp_path):
    """The restore trap: a session holds back its last token, so that one is left to compute."""
    model = build("llama")
    ids = prompt(24)
    expected = _generate(model, ids)
    with TieredCache.open(model, tmp_path, name="doc", **OPTIONS) as cache:
        with torch.no_grad():
            model(ids, **cache_kwargs(cache))
        cache.save()
    with TieredCache.open(model, tmp_path, name="doc", **OPTIONS) as cache:
        assert cache.get_seq_length() == 23
        assert torch.equal(_generate(model, ids, cache), expected)
        assert cache.get_seq_length() == 33


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("given", [24, 20, 1])
def test_live_cache_that_covers_all_ids_is_an_error(name, given, tmp_path):
    model = build(name)
    ids = prompt(24)
    with TieredCache.open(model, tmp_path, **OPTIONS) as cache:
        with torch.no_grad():
            model(ids, **cache_kwargs(cache))
        with pytest.raises((AlreadyCoveredError, ValueError), match=r"already holds|cache"):
            _generate(model, ids[:, :given], cache)
        assert cache.get_seq_length() == 24


def test_chunked_prefill_that_covers_all_ids_is_an_error(tmp_path):
    model = build("llama")
    ids = prompt(24)
    with TieredCache.open(model, tmp_path, **OPTIONS) as cache:
        with torch.no_grad():
            model(ids, **cache_kwargs(cache))
        with pytest.raises(AlreadyCoveredError):
            _generate(model, ids, cache, prefill_chunk_size=6)
        assert cache.get_seq_length() == 24


def test_repeating_text_is_no_trap(tmp_path):
    """Tokens that happen to repeat those held are new tokens where their positions say so."""
    model = build("llama")
    ids = prompt(6)
    with TieredCache.open(model, tmp_path, **OPTIONS) as cache, torch.no_grad():
        for past in (0, 6, 12):
            model(ids, **cache_kwargs(cache), attention_mask=torch.ones(1, past + 6))
        assert cache.token_ids == ids[0].tolist() * 3


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_match_crops_a_live_cache(name, tmp_path):
    model = build(name)
    first, second = prompt(24), prompt(24)
    second[0, 15:] = (second[0, 15:] + 1) % 40 + 3
    expected = _generate(model, second)
    with TieredCache.open(model, tmp_path, **OPTIONS) as cache:
        _generate(model, first, cache)
        assert cache.match(second) == 15
        assert torch.equal(_generate(model, second, cache), expected)
        assert cache.match(second[:, :10]) == 9
        assert cache.match(second[0, :10].tolist()) == 9


def test_match_adopts_stored_pages(tmp_path):
    model = build("llama")
    ids = prompt(27)
    with TieredCache.open(model, tmp_path, name="one", **OPTIONS) as cache:
        _generate(model, ids, cache)
        cache.save()
    longer = torch.cat([ids, prompt(5, seed=9)], 1)
    expected = _generate(model, longer)
    with TieredCache.open(model, tmp_path, name="two", **OPTIONS) as cache:
        assert cache.match(longer) == 24
        assert torch.equal(_generate(model, longer, cache), expected)
    with TieredCache.open(model, tmp_path, **OPTIONS) as cache:
        assert cache.match(ids[:, :24]) == 20
        assert cache.match(prompt(24, seed=5)) == 0
        assert cache.get_seq_length() == 0
        assert torch.equal(_generate(model, ids, cache), _generate(model, ids))


def test_match_never_takes_another_image(tmp_path):
    model = build("llava")
    ids = prompt(24)
    ids[0, 3:7] = 50
    images = [torch.randn(1, 3, 16, 16) for _ in range(2)]
    expected = _generate(model, ids, pixel_values=images[1])
    with TieredCache.open(model, tmp_path, **OPTIONS) as cache:
        _generate(model, ids, cache, pixel_values=images[0])
        cache.save("image")
        assert cache.match(ids) == 0
        assert torch.equal(_generate(model, ids, cache, pixel_values=images[1]), expected)


def test_rows_with_other_images_do_not_share_pages(tmp_path):
    model = build("llava")
    ids = prompt(24).repeat(2, 1)
    ids[:, 3:7] = 50
    pixels = torch.randn(2, 3, 16, 16)
    expected = _generate(model, ids, pixel_values=pixels)
    with TieredCache.open(model, tmp_path, **OPTIONS) as cache:
        assert torch.equal(_generate(model, ids, cache, pixel_values=pixels), expected)


def test_rows_with_other_padding_do_not_share_pages(tmp_path):
    model = build("llama")
    ids = prompt(16).repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    expected = _generate(model, ids, attention_mask=mask)
    with TieredCache.open(model, tmp_path, name="batch", **OPTIONS) as cache:
        assert torch.equal(_generate(model, ids, cache, attention_mask=mask), expected)
        assert cache.row_token_ids(0) == expected[0, :-1].tolist()
        cache.save()
    longer = torch.cat([expected, prompt(3, seed=2).repeat(2, 1)], 1)
    mask = torch.cat([mask, torch.ones(2, longer.shape[1] - 16, dtype=mask.dtype)], 1)
    after = _generate(model, longer, attention_mask=mask)
    with TieredCache.open(model, tmp_path, name="batch", **OPTIONS) as cache:
        assert torch.equal(_generate(model, longer, cache, attention_mask=mask), after)


def test_another_padding_of_held_tokens_is_no_prefix(tmp_path):
    """The same ids after the same ids, but the first ones hidden: other values, other pages."""
    model = build("llama")
    ids, more = prompt(8), prompt(8, seed=1)
    shown, hidden = torch.ones(1, 16), torch.cat([torch.zeros(1, 4), torch.ones(1, 12)], 1)
    for mask in (shown, hidden):
        with TieredCache.open(model, tmp_path, **OPTIONS) as cache, torch.no_grad():
            plain = DynamicCache(config=model.config)
            for each in (plain, cache):
                model(ids, **cache_kwargs(each))
                model(more, **cache_kwargs(each), attention_mask=mask)
            for mine, theirs in zip(cache.layers, plain.layers, strict=True):
                torch.testing.assert_close(mine.values.clone(), theirs.values, rtol=1e-4, atol=1e-5)
            cache.save("one")


def test_forks_are_independent(tmp_path):
    model = build("llama")
    base = prompt(19)
    branches = [torch.cat([base, prompt(4, seed=seed)], 1) for seed in (1, 2)]
    expected = [_generate(model, branch) for branch in branches]
    with TieredCache.open(model, tmp_path, name="trunk", **OPTIONS) as cache:
        with torch.no_grad():
            model(base, **cache_kwargs(cache))
        with cache.fork("one") as one, cache.fork("two") as two:
            for fork, branch, tokens in zip((one, two), branches, expected, strict=True):
                assert torch.equal(_generate(model, branch, fork), tokens)
            one.crop(-3)
            one.save()
            two.save()
        assert cache.get_seq_length() == 19
        cache.save()
    names = {"trunk": 18, "one": expected[0].shape[1] - 5, "two": expected[1].shape[1] - 2}
    for name, length in names.items():
        with TieredCache.open(model, tmp_path, name=name, **OPTIONS) as cache:
            assert cache.get_seq_length() == length


def test_other_weights_or_settings_are_refused(tmp_path):
    model = build("llama")
    with TieredCache.open(model, tmp_path, name="mine", **OPTIONS) as cache:
        _generate(model, prompt(9), cache)
        cache.save()
    with pytest.raises(SettingsMismatchError):
        TieredCache.open(build("llama", seed=5), tmp_path, name="mine", **OPTIONS)
    with pytest.raises(SettingsMismatchError, match="page_tokens"):
        TieredCache.open(model, tmp_path, name="mine", ram="64KiB", page_tokens=8)
    with TieredCache.open(model, tmp_path, name="mine", **OPTIONS) as cache:
        assert cache.get_seq_length() == 17


def test_two_sessions_of_one_directory_at_once(tmp_path):
    model = build("llama")
    with TieredCache.open(model, tmp_path, name="a", **OPTIONS) as a:
        with TieredCache.open(model, tmp_path, name="b", **OPTIONS) as b:
            for cache, seed in ((a, 1), (b, 2)):
                ids = prompt(12, seed=seed)
                assert torch.equal(_generate(model, ids, cache), _generate(model, ids))
        with pytest.raises(ValueError, match="open in this process with other settings.*ram_bytes"):
            TieredCache.open(model, tmp_path, ram="1MiB")


def test_what_cannot_be_saved_says_why(tmp_path):
    model = build("llama")
    with TieredCache(model.config, disk=tmp_path, **OPTIONS) as cache:
        assert cache.token_ids is None
        with pytest.raises(ValueError, match="TieredCache.open"):
            cache.save("x")
        with torch.no_grad():
            model(prompt(5), **cache_kwargs(cache))
        with pytest.raises(ValueError, match="TieredCache.open"):
            cache.match(prompt(5))
    with TieredCache.open(model, None, page_tokens=4) as cache, pytest.raises(ValueError, match="RAM only"):
        cache.save("x")
    with TieredCache.open(model, tmp_path, **OPTIONS) as cache:
        with pytest.raises(ValueError, match="no name"):
            cache.save()
        embeddings = model.get_input_embeddings()(prompt(6))
        with torch.no_grad():
            model(inputs_embeds=embeddings, **cache_kwargs(cache))
            model(prompt(3), **cache_kwargs(cache))
        assert cache.token_ids is None
        with pytest.raises(ValueError, match="embeddings"):
            cache.save("x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ram": "much"}, "ram='much'.*accepted"),
        ({"io": "magic"}, "io='magic'.*auto, direct, mmap, buffered"),
        ({"policy": "best"}, "policy='best'.*auto, lru"),
        ({"page_tokens": 0}, "page_tokens=0.*1 to"),
        ({"page_tokens": 2.5}, "page_tokens=2.5"),
        ({"disk_limit": "1GiB"}, "without a directory"),
    ],
)
def test_arguments_that_are_not_accepted(options, message):
    with pytest.raises(ValueError, match=message):
        TieredCache(build("llama").config, **options)


def test_things_that_are_no_model_or_config(tmp_path):
    with pytest.raises(ValueError, match="config must be"):
        TieredCache([1, 2])
    with pytest.raises(ValueError, match="model must be"):
        TieredCache.open(build("llama").config, tmp_path)
    with pytest.raises(ValueError, match="needs a directory"):
        TieredCache.open(build("llama"), None, name="x")


@pytest.mark.parametrize("name", ["past_key_values", "cache", None])
def test_ids_are_noted_however_the_cache_is_passed(name, tmp_path):
    """By its new name, by the old one while transformers takes it, and by its place."""
    if name == "cache" != CACHE_ARGUMENT:
        pytest.skip("transformers calls it cache from 5.24 on")
    model, ids = build("llama"), prompt(9)
    with TieredCache.open(model, tmp_path, **OPTIONS) as cache, torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`past_key_values` is deprecated", FutureWarning)
        if name is None:
            model(ids, None, None, cache)
        else:
            model(ids, **{name: cache})
        assert cache.token_ids == ids[0].tolist()


def test_hook_goes_with_the_last_cache(tmp_path):
    model = build("llama")
    before = len(model._forward_pre_hooks)
    one = TieredCache.open(model, tmp_path, **OPTIONS)
    two = one.fork()
    assert len(model._forward_pre_hooks) == before + 1
    one.close()
    one.close()
    assert len(model._forward_pre_hooks) == before + 1
    two.close()
    assert len(model._forward_pre_hooks) == before


def test_closed_cache_says_so(tmp_path):
    model = build("llama")
    cache = TieredCache.open(model, tmp_path, **OPTIONS)
    cache.close()
    with pytest.raises(ValueError, match="closed"):
        model(prompt(3), **cache_kwargs(cache))


def test_interrupted_pass_is_mended(tmp_path):
    """A pass that dies half way leaves some layers longer; the next one drops what it left."""
    model = build("llama")
    ids = prompt(20)
    expected = _generate(model, ids)
    with TieredCache.open(model, tmp_path, **OPTIONS) as cache:
        with torch.no_grad():
            model(ids[:, :9], **cache_kwargs(cache))
        update, calls = cache.layers[1].update, []

        def dies(*args, **kwargs):
            calls.append(1)
            raise KeyboardInterrupt

        cache.layers[1].update = dies
        with pytest.raises(KeyboardInterrupt):
            model(prompt(5, seed=8), **cache_kwargs(cache))
        cache.layers[1].update = update
        assert calls
        assert cache.match(ids) == 9
        assert torch.equal(_generate(model, ids, cache), expected)


def test_beams_of_a_session_keep_their_ids(tmp_path):
    model = build("llama")
    with TieredCache.open(model, tmp_path, **OPTIONS) as cache:
        out = _generate(model, prompt(11), cache, num_beams=3, num_return_sequences=3)
        rows = [cache.row_token_ids(row) for row in range(3)]
        assert all(row[:11] == prompt(11)[0].tolist() for row in rows)
        assert any(out[0, :-1].tolist()[: len(row)] == row for row in rows)


def test_stats(tmp_path):
    model = build("gemma3")
    with TieredCache.open(model, tmp_path, name="s", **OPTIONS) as cache:
        _generate(model, prompt(11), cache)
        stats = cache.stats()
        assert {"ram", "disk", "cache"} <= set(stats)
        assert stats["cache"] == {
            "name": "s",
            "tokens": 20,
            "rows": 1,
            "paged_layers": 1,
            "other_layers": 2,
            "page_tokens": 4,
        }
        cache.flush()
