"""Fixtures for all Python tests."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest
import torch

# Triton looks once, when it is imported: without a GPU its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from hypothesis import settings

# Tiny models gain nothing from threads, and lose much to waiting for them on a busy machine.
torch.set_num_threads(1)

settings.register_profile("default", deadline=None, print_blob=True)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def _seeded():
    """The same random numbers in every run."""
    torch.manual_seed(0)
