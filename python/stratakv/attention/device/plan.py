"""What one query token reads: the engine's rules of budgets and positions, from lengths alone."""

from __future__ import annotations

from dataclasses import dataclass

from stratakv.attention.device.choosing import Budget
from stratakv.cache.selection import BLOCK_TOKENS, Selection

FAR_SHARE = 4  # the far place is this part of the trained length away


@dataclass(frozen=True)
class Plan:
    """One token's step.

    Attributes:
        pages: whole pages before it, and its own.
        tail: tokens after these, its own among them.
        budget: blocks of the whole pages that are read.
        far_pages: past the trained length, how many pages away what is further stands; otherwise None, and
            everything has its true position.
    """

    pages: int
    tail: int
    budget: Budget
    far_pages: int | None

    @classmethod
    def of(
        cls,
        selection: Selection,
        trained_tokens: int,
        length: int,
        page_tokens: int,
        focus_blocks: int | None = None,
    ) -> Plan:
        """The step of the last of `length` tokens.

        Args:
            selection: what the cache reads of long contexts.
            trained_tokens: longer contexts are numbered by what is read.
            length: tokens, the one that asks among them.
            page_tokens: tokens of a page.
            focus_blocks: with a focus, what is read beside sinks and window, instead of a budget.
        """
        blocks = selection.native(trained_tokens)
        pages, tail = divmod(length, page_tokens)
        # The tokens of the tail count, and the token that asks is always read.
        tail_blocks = -(-tail // BLOCK_TOKENS)
        window = max(blocks["window"] - tail_blocks, 0 if tail else 1)
        always = blocks["sinks"] + window
        is_focused = focus_blocks is not None
        budget = Budget(
            blocks=max(blocks["blocks"] - tail_blocks, always)
            if focus_blocks is None
            else always + focus_blocks,
            sinks=blocks["sinks"],
            window=window,
            critical=blocks["critical"],
            # What a focus leaves unread is left on purpose.
            unread=1.0 if is_focused else blocks["unread"],
            growth=1.0 if is_focused else blocks["growth"],
        )
        is_compact = length > trained_tokens
        far_pages = max(trained_tokens // FAR_SHARE // page_tokens, 1) if is_compact else None
        return cls(pages, tail, budget, far_pages)

    def longest_distance(self, blocks_per_page: int) -> int:
        """Blocks from the end of the whole pages to the first page that is scored or read where it stands."""
        scored = (self.pages - self.first_near) * blocks_per_page
        read = 0 if self.far_pages is None else self.budget.most_blocks + blocks_per_page
        return max(scored, read)

    @property
    def first_near(self) -> int:
        """The first page that is scored from where it stands."""
        return 0 if self.far_pages is None else max(self.pages - self.far_pages, 0)
