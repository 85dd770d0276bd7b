"""Asserts every published figure that does not take hours; each is recorded as it is measured."""

import functools
import subprocess
import sys

import pytest

from benches.figures import load

FIGURES = load()


def module_of(key: str) -> str:
    return FIGURES[key].measure.__module__


@functools.cache
def measured(keys: tuple[str, ...]) -> tuple[dict[str, str], str]:
    """What each figure of one module says, and the errors: in a process of their own, where they may
    share what takes long."""
    command = [sys.executable, "-m", "benches.figures", "--here", *keys]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    return {key: line for key in keys for line in lines if line.startswith(f"{key}: ")}, done.stderr


@pytest.mark.parametrize("key", [key for key, one in FIGURES.items() if not one.takes_hours])
def test_figure(key, request):
    asked = [item.callspec.params["key"] for item in request.session.items if item.path == request.path]
    said, errors = measured(tuple(other for other in asked if module_of(other) == module_of(key)))
    assert key in said, errors
    assert "FALLS SHORT" not in said[key], said[key]
