"""`pytest benches` collects both kinds of files."""

import pytest


def pytest_collect_file(file_path, parent):
    if file_path.name == "bench_micro.py":
        return pytest.Module.from_parent(parent, path=file_path)
    return None
