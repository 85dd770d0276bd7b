"""Stores, page tables and snapshots: typed tensors in and out of the engine.

Not here: what a model's layers mean (`stratakv.hf`) and how attention is computed over
pages (`stratakv.attention`).
"""

from stratakv.cache.page_table import LayerGeometry, PageTable, Snapshot
from stratakv.cache.store import Store

__all__ = ["LayerGeometry", "PageTable", "Snapshot", "Store"]
