"""What `stratakv chat` knows from earlier conversations, and learns from this one."""

from __future__ import annotations

from typing import Any

from stratakv.cli.errors import explain
from stratakv.cli.output import Output
from stratakv.engram import AssistantMemory
from stratakv.engram.assistant import PROFILE_TOKENS
from stratakv.errors import RefusedError

# Seconds that leaving waits for what was said to be worked through; the rest is done at the next start.
DRAIN_SECONDS = 30.0


class Recollection:
    """The memory of one conversation. Also a context manager: leaving it works through what was said.

    The model sees what stays in its session: the profile is shown at first and when it has changed, and no
    memory twice.
    """

    def __init__(self, directory: str, *, user: str, session: str, out: Output) -> None:
        self.out = out
        self.shown: list[int] = []  # numbers of what was put before the last text
        self._scope: dict[str, Any] = {"user": user}
        self._session = session
        self._known: set[int] = set()
        self._profile = ""
        with out.busy("opening the memory"):
            self._memory = AssistantMemory.open(directory)

    def __enter__(self) -> Recollection:
        return self

    def __exit__(self, *_: object) -> None:
        with self.out.busy("remembering"):
            self._memory.drain(DRAIN_SECONDS)
        self._memory.close()

    def put_before(self, text: str) -> str:
        """A text of the user's with what is known in front of it."""
        changed = self._memory.profile(**self._scope).text != self._profile
        context = self._memory.context(
            text,
            **self._scope,
            without_session=self._session,
            without=self._known,
            profile_tokens=PROFILE_TOKENS if changed else 0,
        )
        self.shown = list(context.ids)
        self._known.update(context.ids)
        if changed:
            self._profile = context.profile.text
        return f"{context.text}\n\n{text}" if context.text else text

    def observe(self, text: str, answer: str) -> None:
        """Remembers a turn of each; what the policy refuses is said, and not remembered."""
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        try:
            self._memory.observe(messages, **self._scope, session=self._session)
        except RefusedError as error:
            self.out.warn(f"not remembered: {explain(error)[0]}")
