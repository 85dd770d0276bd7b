"""What query tokens read: the engine's rules of budgets and positions, from lengths alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stratakv.attention.device.choosing import Budget
from stratakv.cache.selection import BLOCK_TOKENS, Selection

FAR_SHARE = 4  # the far place is this part of the trained length away
PART_TOKENS = 64  # query tokens of a prefill that share one selection; they end at multiples of it
DENSE_PART_TOKENS = 256  # of one that reads everything: bounds what is kept of scores


@dataclass(frozen=True)
class Plan:
    """One token's step, or a part of a prefill whose tokens share a selection.

    Attributes:
        pages: whole pages up to its end.
        tail: tokens after these.
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
        *,
        since: int | None = None,
        part_tokens: int = 0,
    ) -> Plan:
        """The step of the last of `length` tokens, or a part of a prefill that ends there.

        Args:
            selection: what the cache reads of long contexts.
            trained_tokens: longer contexts are numbered by what is read.
            length: tokens, the one that asks among them.
            page_tokens: tokens of a page.
            focus_blocks: with a focus, what is read beside sinks and window, instead of a budget.
            since: with a focus, the block at which the window begins, if there is room.
            part_tokens: tokens of the part, whose blocks come on top of the budget; 0 for a step.
        """
        blocks = selection.native(trained_tokens)
        pages, tail = divmod(length, page_tokens)
        is_focused, is_compact = focus_blocks is not None, length > trained_tokens
        # The tokens of the tail count, and those that ask are always read.
        tail_blocks, own_blocks = -(-tail // BLOCK_TOKENS), -(-part_tokens // BLOCK_TOKENS)
        asking = -(-max((part_tokens or 1) - tail, 0) // BLOCK_TOKENS)
        most, growth, window = blocks["blocks"], blocks["growth"], blocks["window"]
        if is_compact:
            # What is read is numbered without gaps, and the model knows no number beyond its window.
            room = max(trained_tokens // BLOCK_TOKENS - own_blocks, blocks["sinks"] + window)
            most = min(most, room)
            growth = min(growth, (room + own_blocks) / (most + own_blocks))
            if not is_focused and not part_tokens:
                window = max(window, min(blocks["recent"], most - blocks["sinks"]))
        window = max(window + own_blocks - tail_blocks, asking)
        if focus_blocks is not None and since is not None:
            later = max(pages * page_tokens // BLOCK_TOKENS - since, 0)
            others = blocks["sinks"] + focus_blocks
            if is_compact:
                later = min(later, max(max(trained_tokens - tail, 0) // BLOCK_TOKENS - others, 0))
            window = max(window, later)
        always = blocks["sinks"] + window
        budget = Budget(
            blocks=max(most + own_blocks - tail_blocks, always)
            if focus_blocks is None
            else always + focus_blocks,
            sinks=blocks["sinks"],
            window=window,
            critical=blocks["critical"],
            # What a focus leaves unread is left on purpose.
            unread=1.0 if is_focused else blocks["unread"],
            growth=1.0 if is_focused else growth,
        )
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


def parts_of(start: int, length: int, dense_below: float) -> Iterator[tuple[int, int, bool]]:
    """Cuts the tokens [start, length) of a prefill: (start, end, whether it reads everything) of each part.

    What is read does not depend on the chunks of a prefill.

    Args:
        start: the first token.
        length: one past the last.
        dense_below: what ends within so many tokens reads everything.
    """
    while start < length:
        end = min((start // PART_TOKENS + 1) * PART_TOKENS, length)
        is_dense = end <= dense_below
        if is_dense:
            end = min((start // DENSE_PART_TOKENS + 1) * DENSE_PART_TOKENS, length)
            if end > dense_below:
                end = int(dense_below) // PART_TOKENS * PART_TOKENS
        yield start, end, is_dense
        start = end
