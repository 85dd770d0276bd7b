"""Where the planes of a sealed page are, in the form that goes to a device.

A sealed page is two bodies of bytes of one form: per KV head the scale bytes of its keys, those of
its values, the rows of its keys, the rows of its values. In the plane of codes a row is one byte an
element; in the plane of residuals it is half a byte (float32 and bfloat16) or one (float16). Both planes
have the scales, so that the codes can be read without the residuals. What the bytes mean: docs/format.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stratakv.cache.page_table import LayerGeometry


@dataclass(frozen=True)
class PlaneLayout:
    """One plane of a page.

    Attributes:
        num_heads: KV heads.
        page_tokens: tokens of a page.
        key_row: bytes of a key's row.
        value_row: bytes of a value's row.
    """

    num_heads: int
    page_tokens: int
    key_row: int
    value_row: int

    @classmethod
    def of_codes(cls, geometry: LayerGeometry, page_tokens: int) -> PlaneLayout:
        """The FP8 plane."""
        return cls(geometry.num_heads, page_tokens, geometry.key_dim, geometry.value_dim)

    @classmethod
    def of_residuals(cls, geometry: LayerGeometry, page_tokens: int) -> PlaneLayout:
        """The plane that with the codes gives 16 bits."""
        per_byte = 1 if geometry.dtype == torch.float16 else 2
        rows = (-(-dim // per_byte) for dim in (geometry.key_dim, geometry.value_dim))
        return cls(geometry.num_heads, page_tokens, *rows)

    @property
    def keys_start(self) -> int:
        """Bytes of a head before the rows of its keys: the scales."""
        return 2 * self.page_tokens

    @property
    def values_start(self) -> int:
        """Bytes of a head before the rows of its values."""
        return self.keys_start + self.page_tokens * self.key_row

    @property
    def head_bytes(self) -> int:
        """Bytes of a head."""
        return self.values_start + self.page_tokens * self.value_row

    @property
    def page_bytes(self) -> int:
        """Bytes of a page's plane."""
        return self.num_heads * self.head_bytes
