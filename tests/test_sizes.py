"""Byte sizes in and out."""

from __future__ import annotations

import pytest

from stratakv.sizes import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        (1, 1),
        ("4096", 4096),
        ("4GiB", 4 << 30),
        ("512MB", 512_000_000),
        (" 1.5 kib ", 1536),
        ("2TB", 2 * 10**12),
        ("7b", 7),
    ],
)
def test_parse(text, num_bytes):
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "4 GiBs", "GiB", "-1", "1e9", "4,5GB", None, 1.5, True, b"4GB"])
def test_what_is_no_size_is_named(text):
    with pytest.raises(ValueError, match="ram=.*accepted is"):
        parse_bytes(text, name="ram")


@pytest.mark.parametrize("size", [0, -5, "0.5B"])
def test_too_small(size):
    with pytest.raises(ValueError, match="too small"):
        parse_bytes(size)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1536, "1.5KiB"),
        (1010 << 10, "1010KiB"),
        (4 << 30, "4GiB"),
        (5 << 50, "5120TiB"),
    ],
)
def test_format(num_bytes, text):
    assert format_bytes(num_bytes) == text
