"""From texts and turns to token ids, so that what comes first never depends on what comes later.

A prompt is tokenised in pieces: the document and everything before it in one, each question in
another. The ids of the document are then the same whatever is asked about it, which is what lets
stored pages be found again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["document_pieces", "encode", "encode_text", "notes_start", "user_turn"]

NOTES = "Here are some notes. Read them and answer the question.\n\n"
MARK = "\x1estratakv\x1e"  # stands for text that is put in later; templates pass it through


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a piece of a template; special tokens only where it spells them."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Token ids of somebody's text, in which a special token's name is plain characters.

    A document about chat templates must not end the turn that it stands in.
    """
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def document_pieces(tokenizer: Any, document: str, question: str) -> tuple[list[int], list[int]]:
    """The ids of everything up to the document's end, and those of the question.

    With a chat template both are in one user turn; without, plain headings divide them.
    """
    template = _render(tokenizer, [("user", MARK)])
    if template is None:
        before, after = _start(tokenizer), "\n\nAnswer:"
    else:
        before, after = template.split(MARK)
    context = encode(tokenizer, before) + encode_text(tokenizer, f"{document}\n\n")
    return context, encode_text(tokenizer, f"Question: {question}") + encode(tokenizer, after)


def user_turn(tokenizer: Any, texts: Sequence[str], *, is_first: bool) -> list[list[int]]:
    """The ids of a user turn in pieces: what comes before its texts, each of these, what comes after.

    What comes before a later turn is the end of the answer; what comes after leads to where the next begins.
    The ids of a text depend on nothing else.
    """
    before, after = _frame(tokenizer, is_first=is_first).split(MARK)
    return [
        encode(tokenizer, before),
        *(encode_text(tokenizer, text) for text in texts),
        encode(tokenizer, after),
    ]


def notes_start(tokenizer: Any) -> list[int]:
    """How a conversation begins whose first turn begins with notes; texts are kept behind it."""
    return user_turn(tokenizer, [], is_first=True)[0] + encode_text(tokenizer, NOTES)


def _frame(tokenizer: Any, *, is_first: bool) -> str:
    """A user turn's template, with a mark for its text."""
    if is_first:
        rendered = _render(tokenizer, [("user", MARK)])
        return f"{_start(tokenizer)}User: {MARK}\nAssistant:" if rendered is None else rendered
    mark_answer = MARK[::-1]
    rendered = _render(tokenizer, [("user", "a"), ("assistant", mark_answer), ("user", MARK)])
    return "\nUser: " + MARK + "\nAssistant:" if rendered is None else rendered.split(mark_answer)[1]


def _render(tokenizer: Any, turns: list[tuple[str, str]]) -> str | None:
    if not getattr(tokenizer, "chat_template", None):
        return None
    messages = [{"role": role, "content": content} for role, content in turns]
    rendered: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return rendered


def _start(tokenizer: Any) -> str:
    return getattr(tokenizer, "bos_token", None) or ""
