"""A directory that another process writes, and one that lost some of its bytes."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from stratakv import TieredCache
from stratakv.errors import LockedError, PagesLostWarning
from stratakv.hf.compat import cache_kwargs
from tests.hf.tiny_models import build, prompt

pytestmark = pytest.mark.hf

ROOT = Path(__file__).parents[2]
OPTIONS = {"ram": "64KiB", "page_tokens": 4}
NEW = {"max_new_tokens": 10, "do_sample": False}


def test_a_reader_goes_on_with_a_session_beside_its_writer(tmp_path):
    model = build("llama")
    ids = prompt(40)
    expected = model.generate(ids, **cache_kwargs(DynamicCache(config=model.config)), **NEW)
    code = f"""
        from stratakv import TieredCache
        from stratakv.errors import LockedError, StrataError
        from stratakv.hf.compat import cache_kwargs
        from tests.hf.tiny_models import build, prompt
        model = build("llama")
        try:
            TieredCache.open(model, {str(tmp_path)!r}, name="doc", ram="64KiB")
        except LockedError as error:
            assert "read-only" in str(error), error
        else:
            raise AssertionError("two writers")
        with TieredCache.open(model, {str(tmp_path)!r}, name="doc", ram="1MiB", read_only=True) as cache:
            assert cache.get_seq_length() == 39
            out = model.generate(prompt(40), **cache_kwargs(cache), max_new_tokens=10, do_sample=False)
            try:
                cache.save()
            except StrataError as error:
                assert "read-only" in str(error), error
            else:
                raise AssertionError("a reader wrote")
        print(out[0].tolist())
    """
    with TieredCache.open(model, tmp_path, name="doc", **OPTIONS) as writer:
        with torch.no_grad():
            model(ids, **cache_kwargs(writer))
        writer.save()
        run = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(expected[0].tolist())
    assert issubclass(LockedError, OSError)


def test_a_session_that_lost_pages_says_so_and_computes_them_again(tmp_path):
    model = build("llama")
    ids = prompt(200)
    expected = model.generate(ids, **cache_kwargs(DynamicCache(config=model.config)), **NEW)
    with TieredCache.open(model, tmp_path, name="doc", **OPTIONS) as cache:
        with torch.no_grad():
            model(ids, **cache_kwargs(cache))
        cache.save()
    damaged = rot_a_page(tmp_path)
    with TieredCache.open(model, tmp_path, name="doc", **OPTIONS) as cache:
        if cache.get_seq_length() == 199:
            # Nobody has read the page yet: the first to need it is told, and gets no numbers.
            with pytest.raises(LookupError, match="lost"):
                model.generate(ids, **cache_kwargs(cache), **NEW)
    with pytest.warns(PagesLostWarning, match="of 200 tokens are left"):
        cache = resumed_after(model, tmp_path, damaged)
    with cache:
        cache.match(ids)
        assert torch.equal(model.generate(ids, **cache_kwargs(cache), **NEW), expected)


def rot_a_page(directory: Path) -> Path:
    """Flips a bit in the middle of the first segment's page bodies."""
    segment = min((directory / "segments").glob("*.seg"))
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    return segment


def resumed_after(model, directory: Path, segment: Path):
    """Opens the session with its damaged segment gone, so that the loss is known at once."""
    segment.unlink()
    return TieredCache.open(model, directory, name="doc", **OPTIONS)
