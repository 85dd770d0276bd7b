"""Asserts every published figure; each is recorded as it is measured."""

import subprocess
import sys

import pytest

from benches.figures import load


@pytest.mark.parametrize("key", sorted(load()))
def test_figure(key):
    done = subprocess.run(
        [sys.executable, "-m", "benches.figures", "--here", key], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
