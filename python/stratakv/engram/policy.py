"""What happens to secrets and personal data in what is to be remembered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from stratakv.engram.secrets import Finding, find
from stratakv.errors import RefusedError

Action = Literal["refuse", "mask", "store"]
ACTIONS: tuple[str, ...] = get_args(Action)

# What stands in a memory instead of what was taken out.
_LABELS = {
    "private_key": "private key",
    "api_key": "API key",
    "password": "password",
    "card": "card number",
    "iban": "account number",
    "email": "e-mail address",
    "phone": "phone number",
}


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A text after a policy: as it may be stored, and how many of each kind were masked, and left."""

    text: str
    masked: Mapping[str, int] = field(default_factory=dict)
    stored: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What is done with each kind of secret: "refuse", "mask" or "store".

    Refusing raises, and nothing of the call is stored; masking puts "[API key]" in its place before the text
    is written or embedded. The default keeps out what opens doors or moves money, and lets in people's
    addresses and numbers, which an assistant is asked about.

    Raises:
        ValueError: another action.
    """

    private_key: Action = "refuse"
    api_key: Action = "mask"
    password: Action = "mask"  # noqa: S105  an action
    card: Action = "mask"
    iban: Action = "mask"
    email: Action = "store"
    phone: Action = "store"

    def __post_init__(self) -> None:
        for kind, action in self.actions().items():
            if action not in ACTIONS:
                raise ValueError(f"{kind}={action!r}: accepted are {', '.join(ACTIONS)}")

    @classmethod
    def all(cls, action: Action) -> Policy:
        """One action for every kind."""
        return cls(**{kind.name: action for kind in fields(cls)})

    def actions(self) -> dict[str, Action]:
        """The action of each kind."""
        return {kind.name: getattr(self, kind.name) for kind in fields(self)}

    def check(self, text: str) -> Checked:
        """The text as it may be stored.

        Raises:
            RefusedError: it has what is refused; the message names kinds and places, not the text.
        """
        actions, found = self.actions(), find(text)
        refused = [one for one in found if actions[one.kind] == "refuse"]
        if refused:
            raise RefusedError(_refusal(refused))
        masked = [one for one in found if actions[one.kind] == "mask"]
        stored = [one for one in found if actions[one.kind] == "store"]
        return Checked(text=_mask(text, masked), masked=_count(masked), stored=_count(stored))

    def check_value(self, value: Any) -> tuple[Any, Counter[str]]:
        """A value of JSON, every text in it as it may be stored; how many of each kind were masked.

        Raises:
            RefusedError: as `check`.
        """
        masked: Counter[str] = Counter()

        def walk(value: Any) -> Any:
            if isinstance(value, str):
                checked = self.check(value)
                masked.update(checked.masked)
                return checked.text
            if isinstance(value, Mapping):
                return {walk(key): walk(entry) for key, entry in value.items()}
            if isinstance(value, list | tuple):
                return [walk(entry) for entry in value]
            return value

        return walk(value), masked


def _mask(text: str, findings: list[Finding]) -> str:
    for one in reversed(findings):
        text = f"{text[: one.start]}[{_LABELS[one.kind]}]{text[one.end :]}"
    return text


def _refusal(findings: list[Finding]) -> str:
    places = ", ".join(f"{_LABELS[one.kind]} at characters {one.start} to {one.end}" for one in findings[:3])
    more = f" and {len(findings) - 3} more" if len(findings) > 3 else ""
    return f"the text has what the policy refuses: {places}{more}; take it out, or let it be masked or stored"


def _count(findings: list[Finding]) -> dict[str, int]:
    return dict(Counter(one.kind for one in findings))
