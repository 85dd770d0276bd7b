"""The engine stays free of Python."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("cargo") is None, reason="cargo is not installed")
def test_the_engine_does_not_depend_on_pyo3():
    done = subprocess.run(
        ["cargo", "tree", "--locked", "-p", "stratakv-core", "-e", "normal", "--prefix", "none"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = {line.split()[0] for line in done.stdout.splitlines() if line}
    assert "stratakv-core" in names
    assert not {name for name in names if name.startswith(("pyo3", "numpy"))}
