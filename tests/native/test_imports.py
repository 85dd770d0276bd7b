"""The law of the rooms: who may import whom, read from the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "python" / "stratakv"
SOURCES = sorted(PACKAGE.rglob("*.py"))


def _imports(path: Path) -> set[str]:
    """Full names of everything a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


def _uses(path: Path, package: str) -> bool:
    return any(name == package or name.startswith(package + ".") for name in _imports(path))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_hf_imports_transformers(path):
    assert not _uses(path, "transformers") or _room(path) == "hf"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_one_file_imports_the_database_driver(path):
    is_driver = path == PACKAGE / "engram" / "postgres" / "driver.py"
    assert is_driver or not any(_uses(path, name) for name in ("psycopg", "psycopg_pool", "pgvector"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_points_back(path):
    """cli -> hf -> attention -> cache -> _native; hf -> nn; cli -> train -> nn."""
    for order in (["cache", "attention", "hf", "cli"], ["nn", "hf", "cli"], ["nn", "train", "cli"]):
        if _room(path) in order:
            above = order[order.index(_room(path)) + 1 :]
            assert not [name for name in above if _uses(path, f"stratakv.{name}")]


def test_import_is_light():
    """Importing the package brings neither torch nor transformers."""
    code = (
        "import stratakv, sys; assert not {'torch', 'transformers'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_caches_need_no_image_library():
    """Models of images are registered on import; Pillow and torchvision are for those who use them."""
    code = (
        "import sys; sys.modules |= {'PIL': None, 'torchvision': None}; import stratakv; stratakv.TieredCache"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_transformers_says_what_to_install():
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "import stratakv\n"
        "try: stratakv.TieredCache\n"
        "except ImportError as error: assert \"pip install 'stratakv[hf]'\" in str(error), error\n"
        "else: raise SystemExit('no error')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_name_is_an_attribute_error():
    import stratakv

    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = stratakv.Nothing
    assert "TieredCache" in dir(stratakv)
