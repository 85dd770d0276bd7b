"""Handles on stores, and page tables over them."""

from __future__ import annotations

import pytest
import torch

from stratakv.cache import LayerGeometry, PageTable, Store


def _table(store, **options):
    return PageTable(store, num_slots=1, page_tokens=4, **options)


def test_handles_of_one_directory_share_a_store(tmp_path):
    first, second = Store(tmp_path, ram="1MiB"), Store(str(tmp_path), ram=1 << 20)
    assert first.native is second.native
    first.close()
    first.close()
    with pytest.raises(ValueError, match="this store is closed"):
        _ = first.native
    third = second.share()
    second.close()
    assert third.stats()["ram"]["limit_bytes"] == 1 << 20
    third.close()
    with Store(tmp_path, ram="2MiB") as again:
        assert again.settings.ram_bytes == 2 << 20


def test_stores_in_ram_are_apart():
    with Store(ram="1MiB") as first, Store(ram="1MiB") as second:
        assert first.native is not second.native


def test_a_handle_that_is_forgotten_lets_go(tmp_path):
    Store(tmp_path, ram="1MiB")
    with Store(tmp_path, ram="2MiB"):
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"io": "fast"}, "io='fast': accepted are auto"),
        ({"policy": "fifo"}, "policy='fifo': accepted are auto"),
        ({"ram": -1}, "ram=-1 is too small"),
        ({"disk_limit": "1GB"}, "disk_limit is given without a directory"),
        ({"free_floor": "x"}, "free_floor='x'"),
    ],
)
def test_what_is_not_accepted(options, message):
    with pytest.raises(ValueError, match=message):
        Store(**options)


@pytest.mark.parametrize(
    ("keys", "values", "message"),
    [
        (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), "must be"),
        (torch.zeros(1, 2, 3, 4), torch.zeros(1, 1, 3, 4), "equal B, H and T"),
        (torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4).half(), "both must be one of"),
        (torch.zeros(1, 2, 3, 4).long(), torch.zeros(1, 2, 3, 4).long(), "int64"),
    ],
)
def test_geometry_of_other_tensors(keys, values, message):
    with pytest.raises(ValueError, match=message):
        LayerGeometry.of(keys, values)


def test_appending_another_geometry_is_an_error():
    with Store(ram="1MiB") as store:
        table = _table(store)
        table.append(0, torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8))
        with pytest.raises(ValueError, match="this layer holds"):
            table.append(0, torch.zeros(1, 2, 3, 16), torch.zeros(1, 2, 3, 8))


def test_tensors_of_any_layout():
    """Transposed, expanded and sliced tensors go in as they are."""
    with Store(ram="1MiB") as store:
        table = _table(store)
        base = torch.randn(2, 5, 3, 8)
        keys, values = base.transpose(1, 2), torch.randn(2, 3, 8, 5).transpose(2, 3)
        table.append(0, keys, values)
        table.append(0, keys[:, :, :1].expand(2, 3, 4, 8), values[..., :4, :])
        got = table.snapshot(0, torch.device("cpu")).gather(0, 9)
        assert torch.equal(got[0], torch.cat([keys, keys[:, :, :1].expand(2, 3, 4, 8)], 2))
        assert torch.equal(got[1], torch.cat([values, values[..., :4, :]], 2))


def test_closed_table_says_so():
    with Store(ram="1MiB") as store:
        table = _table(store)
        table.close()
        table.close()
        with pytest.raises(ValueError, match="closed"):
            table.length(0)


def test_snapshot_of_nothing():
    with Store(ram="1MiB") as store, pytest.raises(ValueError, match="holds no keys"):
        _table(store).snapshot(0, torch.device("cpu"))
