"""What `stratakv chat` knows from earlier conversations, and learns from this one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from stratakv.cli.errors import explain
from stratakv.cli.output import Output
from stratakv.engram import AssistantMemory, Embedder
from stratakv.engram.assistant import PROFILE_TOKENS
from stratakv.engram.memory import Memory
from stratakv.errors import RefusedError

if TYPE_CHECKING:
    from stratakv import KeptPages

# Seconds that leaving waits for what was said to be worked through; the rest is done at the next start.
DRAIN_SECONDS = 30.0


class Recollection:
    """The memory of one conversation. Also a context manager: leaving it works through what was said.

    The model sees what stays in its session: the profile is shown at first and when it has changed, and no
    memory twice.

    Args:
        directory: the memories'.
        user: whose.
        session: the conversation's name.
        embedder: what makes the memories' vectors.
        whole_tokens: how long recalled memories may be in a turn that are put whole, because they are longer
            than a line.
        out: told what is not remembered.
    """

    def __init__(
        self,
        directory: str,
        *,
        user: str,
        session: str,
        embedder: Embedder | None,
        whole_tokens: int,
        out: Output,
    ) -> None:
        self.out = out
        self.shown: list[int] = []  # numbers of what was put before the last text
        self._whole_tokens = whole_tokens
        self._scope: dict[str, Any] = {"user": user}
        self._session = session
        self._known: set[int] = set()
        self._profile = ""
        with out.busy("opening the memory"):
            self._memory = AssistantMemory.open(directory, embedder=embedder)

    def __enter__(self) -> Recollection:
        return self

    def __exit__(self, *_: object) -> None:
        with self.out.busy("remembering"):
            self._memory.drain(DRAIN_SECONDS)
        self._memory.close()

    @contextlib.contextmanager
    def keep_pages(
        self, model: Any, *, behind: Sequence[int], ram: int, disk_limit: int | None
    ) -> Iterator[KeptPages | None]:
        """The pages of memories that are put whole; None where the model or the memory has none."""
        from stratakv.hf import KeptPages

        with contextlib.ExitStack() as stack:
            pages = None
            if self._whole_tokens:
                # Models that are not attached, hybrids and databases keep none: texts are computed there.
                with contextlib.suppress(ValueError):
                    pages = stack.enter_context(
                        KeptPages(
                            self._memory, model, behind=behind, ram=ram, disk_limit=disk_limit, **self._scope
                        )
                    )
            yield pages

    def put_before(self, text: str) -> tuple[str, Sequence[Memory]]:
        """A text of the user's with what is known in front of it; and what is put before that, whole."""
        changed = self._memory.profile(**self._scope).text != self._profile
        context = self._memory.context(
            text,
            **self._scope,
            without_session=self._session,
            without=self._known,
            profile_tokens=PROFILE_TOKENS if changed else 0,
            whole_tokens=self._whole_tokens,
        )
        self.shown = list(context.ids)
        self._known.update(context.ids)
        if changed:
            self._profile = context.profile.text
        return f"{context.text}\n\n{text}" if context.text else text, context.whole

    def observe(self, text: str, answer: str) -> None:
        """Remembers a turn of each; what the policy refuses is said, and not remembered."""
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        try:
            self._memory.observe(messages, **self._scope, session=self._session)
        except RefusedError as error:
            self.out.warn(f"not remembered: {explain(error)[0]}")
