"""A parser whose mistakes read like all other errors: one line, and what to do next."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from stratakv.cli.errors import UsageError

__all__ = ["Parser"]


class Parser(argparse.ArgumentParser):
    """`argparse`'s, but for what it does with a mistake."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._choice: Any = None

    def add_subparsers(self, **options: Any) -> Any:
        """As argparse's."""
        self._choice = super().add_subparsers(**options)
        return self._choice

    def error(self, message: str) -> NoReturn:
        """Refuses the command line.

        Raises:
            UsageError: always.
        """
        see = f"see `{self.prog} --help`"
        if self._choice is not None and self._choice.required and message.endswith(self._choice.metavar):
            raise UsageError(f"{self._choice.metavar} is missing", f"there are {self._names()}; {see}")
        raise UsageError(message, see)

    def _names(self) -> str:
        return ", ".join(self._choice.choices)
