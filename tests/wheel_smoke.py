"""What a fresh environment with nothing but the wheel must be able to do. Run as a script."""

import importlib.metadata
import tempfile

import torch

import stratakv
from stratakv import _native

assert importlib.metadata.version("stratakv") == stratakv.__version__ == _native.__version__
with tempfile.TemporaryDirectory() as directory:
    store = _native.Store(directory, ram_bytes=1 << 20)
    cache = _native.KvCache(store, num_layers=1, page_tokens=16)
    keys, values = torch.randn(1, 2, 500, 64), torch.randn(1, 2, 500, 64)
    cache.append(0, keys, values)
    query, out = torch.randn(1, 4, 1, 64), torch.empty(1, 4, 1, 64)
    cache.attend(0, query, out, 0.125)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, keys, values, scale=0.125, enable_gqa=True
    )
    torch.testing.assert_close(out, expected)
    cache.close()
    store.close()
print("the wheel works")
