"""Real text of any length that every machine with Python has: the standard library's documentation."""

from __future__ import annotations

from typing import Any


def token_ids(tokenizer: Any, count: int) -> list[int]:
    """The first `count` token ids of the standard library's sources, in the order of their names."""
    import sysconfig
    from pathlib import Path

    ids: list[int] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        ids += tokenizer(path.read_text(errors="replace"), add_special_tokens=False)["input_ids"]
        if len(ids) >= count:
            return ids[:count]
    raise SystemExit(f"the standard library has {len(ids)} tokens, fewer than the {count} asked for")


def write_text(path: Any, tokenizer: Any, count: int) -> None:
    """A file of about `count` tokens."""
    path.write_text(tokenizer.decode(token_ids(tokenizer, count)))
