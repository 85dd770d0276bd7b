"""What is written passes here: the policy looks at every text before it is embedded or stored."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from stratakv.engram.engine import Draft
from stratakv.engram.memory import Scope
from stratakv.engram.policy import Policy
from stratakv.engram.turns import Turn
from stratakv.errors import RefusedError


class Gate:
    """Lets texts in as the policy wants them.

    Args:
        policy: what is done with secrets and personal data.
        refused: called with the scope of what is refused.
    """

    def __init__(self, policy: Policy, refused: Callable[[Scope], None]) -> None:
        self.policy = policy
        self._refused = refused

    def draft(self, draft: Draft, scope: Scope, masked: Counter[str]) -> Draft:
        """A draft as it may be stored; what was masked in it is counted by kind.

        Raises:
            RefusedError: it has what the policy refuses.
        """
        text, metadata, source, author, *rest = draft
        parts = [text, json.loads(metadata) if metadata else None, source, author]
        text, extra, source, author = self._allowed(parts, scope, masked)
        encoded = json.dumps(extra, ensure_ascii=False) if extra else ""
        return (text, encoded, source, author, *rest)

    def turn(self, turn: Turn, scope: Scope, masked: Counter[str]) -> Turn:
        """As `draft`, a turn."""
        text, name = self._allowed([turn.text, turn.name], scope, masked)
        return replace(turn, text=text, name=name)

    def _allowed(self, parts: list[Any], scope: Scope, masked: Counter[str]) -> list[Any]:
        try:
            allowed, found = self.policy.check_value(parts)
        except RefusedError:
            self._refused(scope)
            raise
        masked.update(found)
        checked: list[Any] = allowed
        return checked
