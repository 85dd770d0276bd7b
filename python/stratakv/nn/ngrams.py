"""Which rows of a conditional memory a text looks up: compressed tokens, hashed in n-grams.

Bit for bit the published algorithm, so that tables trained elsewhere mean the same here. No
parameters; everything follows from a tokenizer, a seed and sizes.

V tokens of the tokenizer, B batch, T tokens, N the longest n-gram, K heads per order, R = (N - 1) K rows.

Source: Engram (arXiv 2601.07372), section 2.2, and DeepSeek's published demonstration.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

# The published constant by which layers' seeds differ.
LAYER_SEED = 10007
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Unicode's White_Space. Python's `str.strip` would take the separators \x1c to \x1f as well.
_SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_INT64_MAX = 2**63 - 1
# Of Miller and Rabin's test, enough for every number below 3.3e24 (Sorenson & Webster, 2015).
_WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)


def normalize(text: str) -> str:
    """What two tokens must share to be one: compatibility form, no accents, lower case, single spaces.

    Blanks at the ends go, but a text of blanks alone is one space. The published code's normalizer does
    not know marks that Unicode has since version 9; this one takes those away, too.
    """
    text = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
    # Character by character: a final sigma is a sigma.
    text = "".join(c.lower() for c in text if not unicodedata.category(c).startswith("M"))
    runs = []
    for character in text:
        if character not in " \t\r\n":
            runs.append(character)
        elif not runs or runs[-1] != " ":
            runs.append(" ")
    text = "".join(runs)
    return text if text == " " else text.strip(_SPACES)


def compress_vocabulary(
    texts: Sequence[str], tokens: Sequence[str], *, normalizer: Callable[[str], str] = normalize
) -> Tensor:
    """New ids for a tokenizer's: tokens of one meaning share one, numbered by first appearance.

    Args:
        texts: what each id decodes to by itself.
        tokens: each id's own name, which stands for those that are no whole characters.
        normalizer: tokens of the same text after it share an id.

    Returns:
        (V,) int64.

    Raises:
        ValueError: texts and tokens are not as many.
    """
    if len(texts) != len(tokens):
        raise ValueError(f"{len(texts)} texts, but {len(tokens)} tokens")
    new_ids: dict[str, int] = {}
    keys = (
        token if REPLACEMENT in text else normalizer(text) or text
        for text, token in zip(texts, tokens, strict=True)
    )
    return torch.tensor([new_ids.setdefault(key, len(new_ids)) for key in keys], dtype=torch.int64)


@dataclass(frozen=True)
class NGramPlan:
    """How one layer hashes.

    Attributes:
        multipliers: N odd numbers, of the token itself and of those before it.
        primes: sizes of the tables of each order from 2 to N, K each.
    """

    multipliers: tuple[int, ...]
    primes: tuple[tuple[int, ...], ...]

    @property
    def num_rows(self) -> int:
        """Rows of all tables together."""
        return sum(map(sum, self.primes))

    @property
    def offsets(self) -> list[int]:
        """Where each of R tables starts, if they lie one after the other."""
        sizes = [prime for order in self.primes for prime in order]
        return [sum(sizes[:index]) for index in range(len(sizes))]


def plan_layers(
    layers: Sequence[int],
    compressed_size: int,
    *,
    table_sizes: Sequence[int],
    num_heads: int = 8,
    seed: int = 0,
) -> dict[int, NGramPlan]:
    """The hashes of all layers with a memory; they depend on each other, since no prime comes twice.

    Args:
        layers: numbers of the layers, in order.
        compressed_size: number of different compressed ids.
        table_sizes: least size of a table of each order, from 2 on; N is one more than these are.
        num_heads: K.
        seed: of the multipliers.

    Raises:
        ValueError: no layers, no orders, or a size below 1.
    """
    if not layers or not table_sizes or min(compressed_size, num_heads, *table_sizes) < 1:
        raise ValueError(
            f"layers={list(layers)}, table_sizes={list(table_sizes)}, compressed_size={compressed_size}, "
            f"num_heads={num_heads}: at least one layer and one order, sizes of at least 1"
        )
    bound = max(1, _INT64_MAX // compressed_size // 2)
    taken: set[int] = set()
    plans = {}
    for layer in layers:
        numbers = np.random.default_rng(seed + LAYER_SEED * layer).integers(
            0, bound, size=len(table_sizes) + 1, dtype=np.int64
        )
        orders = []
        for size in table_sizes:
            last, primes = size - 1, []
            for _ in range(num_heads):
                last = _next_prime(last, taken)
                taken.add(last)
                primes.append(last)
            orders.append(tuple(primes))
        plans[layer] = NGramPlan(tuple(int(number) * 2 + 1 for number in numbers), tuple(orders))
    return plans


def ngram_hashes(ids_BT: Tensor, plan: NGramPlan, *, pad: int, past_BP: Tensor | None = None) -> Tensor:
    """Rows of each table that each token looks up.

    Args:
        ids_BT: compressed ids, int64. A negative one is no text (an image): what comes after it does not
            see what came before, as in DeepSeek's V4.1.
        plan: the layer's.
        pad: the compressed id that stands before the text.
        past_BP: (B, N - 1) compressed ids before these; None at the start of a text.

    Returns:
        (B, T, R) int64, each below its table's prime.
    """
    longest = len(plan.multipliers)
    if past_BP is None:
        past_BP = ids_BT.new_full((ids_BT.shape[0], longest - 1), pad)
    all_BA = torch.cat([past_BP, ids_BT], -1)
    num_tokens = ids_BT.shape[1]
    unbroken = torch.ones_like(ids_BT, dtype=torch.bool)
    mix_BT = torch.zeros_like(ids_BT)
    rows = []
    for back, multiplier in enumerate(plan.multipliers):
        start = longest - 1 - back
        shifted_BT = all_BA[:, start : start + num_tokens]
        unbroken = unbroken & (shifted_BT >= 0)
        # Products wrap around, as int64 does.
        product_BT = torch.where(unbroken, shifted_BT, pad) * multiplier
        mix_BT = mix_BT.bitwise_xor(product_BT) if back else product_BT
        if back:
            rows += [mix_BT % prime for prime in plan.primes[back - 1]]
    return torch.stack(rows, -1)


def _next_prime(after: int, taken: set[int]) -> int:
    candidate = after + 1
    while candidate in taken or not _is_prime(candidate):
        candidate += 1
    return candidate


@cache
def _is_prime(number: int) -> bool:
    if number < 2:
        return False
    for small in _WITNESSES:
        if number % small == 0:
            return number == small
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    return all(_passes(number, witness, odd, twos) for witness in _WITNESSES)


def _passes(number: int, witness: int, odd: int, twos: int) -> bool:
    power = pow(witness, odd, number)
    if power in (1, number - 1):
        return True
    for _ in range(twos - 1):
        power = power * power % number
        if power == number - 1:
            return True
    return False
