"""A tokenizer of one's own, learned from the text that a model is trained on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from stratakv.nn.ngrams import compress_vocabulary

END = "<|end|>"
START = "<|start|>"
BYTES = 256
# The roles in front of what was said, as `stratakv chat` asks for it.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def learn_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-pair encoding of bytes: any text is representable, and decodes to itself.

    Args:
        texts: what is learned from.
        vocab_size: tokens, bytes and the two special ones included.

    Raises:
        ValueError: a size below 258.
    """
    if vocab_size < BYTES + 2:
        raise ValueError(f"vocab_size={vocab_size} must be at least {BYTES + 2}: all bytes, and two more")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, additional_special_tokens=[START]
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def compressed_vocabulary(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """(V,) compressed ids of a tokenizer's tokens, for a conditional memory."""
    ids = range(len(tokenizer))
    texts = [tokenizer.decode([token], skip_special_tokens=False) for token in ids]
    return compress_vocabulary(texts, tokenizer.convert_ids_to_tokens(list(ids)))


def open_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The tokenizer that was saved into a directory.

    Raises:
        OSError: there is none.
    """
    return PreTrainedTokenizerFast.from_pretrained(directory)
