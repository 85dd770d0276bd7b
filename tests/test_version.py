"""The version is written once, in Cargo.toml."""

import importlib.metadata
import tomllib
from pathlib import Path

import stratakv
from stratakv import _native


def test_all_versions_are_cargos():
    cargo = tomllib.loads((Path(__file__).parents[1] / "Cargo.toml").read_text())
    version = cargo["workspace"]["package"]["version"]
    assert version == _native.__version__ == stratakv.__version__ == importlib.metadata.version("stratakv")
