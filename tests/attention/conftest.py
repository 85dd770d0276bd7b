"""A table of random pages with its real tensors beside it."""

from __future__ import annotations

import pytest
import torch

from stratakv.cache import PageTable, Store


@pytest.fixture
def make_pages(tmp_path):
    """Makes (snapshot, keys, values) of given shapes; small pages, some of them on disk."""
    stores = []

    def make(rows=2, heads=2, tokens=37, key_dim=16, value_dim=None, dtype=torch.float32, page_tokens=4):
        store = Store(tmp_path, ram="256KiB")
        stores.append(store)
        table = PageTable(store, num_slots=1, page_tokens=page_tokens)
        keys = torch.randn(rows, heads, tokens, key_dim).to(dtype)
        values = torch.randn(rows, heads, tokens, value_dim or key_dim).to(dtype)
        first = max(tokens // 3, 1)
        for start, stop in ((0, first), (first, tokens)):
            if stop > start:
                table.append(0, keys[:, :, start:stop], values[:, :, start:stop])
        return table.snapshot(0, torch.device("cpu")), keys, values

    yield make
    for store in stores:
        store.close()
