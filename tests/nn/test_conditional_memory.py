"""The n-gram memory: hashes bit for bit, gates and convolution against loops, texts in pieces."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from stratakv.nn import ConditionalMemory, MemoryState, compress_vocabulary, ngram_hashes, plan_layers
from stratakv.nn.ngrams import _is_prime, normalize

VOCAB = 40


def by_trial(number):
    return number > 1 and all(number % other for other in range(2, math.isqrt(number) + 1))


def published_plan(layers, size, table_sizes, num_heads, seed):
    """The published procedure, by trial division and Python's integers."""
    taken, plans = set(), {}
    for layer in layers:
        random = np.random.default_rng(seed + 10007 * layer)
        half = max(1, (2**63 - 1) // size // 2)
        multipliers = random.integers(low=0, high=half, size=(len(table_sizes) + 1,), dtype=np.int64) * 2 + 1
        primes = []
        for table_size in table_sizes:
            candidate = table_size - 1
            for _ in range(num_heads):
                candidate += 1
                while not by_trial(candidate) or candidate in taken:
                    candidate += 1
                taken.add(candidate)
                primes.append(candidate)
        plans[layer] = ([int(m) for m in multipliers], primes)
    return plans


def wrapped(number):
    """As int64 has it."""
    return (number + 2**63) % 2**64 - 2**63


@pytest.mark.parametrize(("size", "seed"), [(29, 0), (99_000, 3), (1, 1)])
def test_hashes_are_the_published_ones(size, seed):
    layers, table_sizes, num_heads, pad = [1, 15, 3], [50, 50, 97], 4, 0
    plans = plan_layers(layers, size, table_sizes=table_sizes, num_heads=num_heads, seed=seed)
    expected = published_plan(layers, size, table_sizes, num_heads, seed)
    ids = torch.randint(size, (2, 11))
    for layer in layers:
        multipliers, primes = expected[layer]
        assert list(plans[layer].multipliers) == multipliers
        assert [p for order in plans[layer].primes for p in order] == primes
        hashes = ngram_hashes(ids, plans[layer], pad=pad)
        assert hashes.shape == (2, 11, 12)
        for b in range(2):
            for t in range(11):
                row = []
                for n in range(2, 5):
                    mix = 0
                    for back in range(n):
                        token = int(ids[b, t - back]) if t >= back else pad
                        mix ^= wrapped(token * multipliers[back])
                    row += [mix % prime for prime in primes[(n - 2) * num_heads : (n - 1) * num_heads]]
                assert hashes[b, t].tolist() == row
    flat = [p for plan in plans.values() for order in plan.primes for p in order]
    assert len(set(flat)) == len(flat)


def test_multipliers_of_the_published_demo():
    """The demonstration's own sizes: seed 0, layers 1 and 15, tables of 129280 * 5."""
    plans = plan_layers([1, 15], 99_000, table_sizes=[129280 * 5] * 2)
    assert all(multiplier % 2 for plan in plans.values() for multiplier in plan.multipliers)
    primes = [p for plan in plans.values() for order in plan.primes for p in order]
    assert len(primes) == 32
    assert primes == sorted(primes)
    assert primes[0] >= 129280 * 5
    assert plans[1].offsets[1] == primes[0]
    assert plans[1].num_rows == sum(primes[:16])


def test_primes():
    assert [number for number in range(-2, 2000) if _is_prime(number)] == [
        number for number in range(2000) if by_trial(number)
    ]
    assert _is_prime(2**61 - 1)
    assert not _is_prime((2**31 - 1) * (2**13 - 1))
    assert not _is_prime(3215031751)  # passes for 2, 3, 5 and 7


SAMPLES = [
    "Hello",
    " hello",
    "HELLO ",
    "héllo",
    "hello\n\n",
    "",
    " ",
    "  ",
    "\n",
    "\t \r\n",
    "ﬁ",
    "ΣΑΣ",
    "İ",
    "ß",
]
SAMPLES += ["a  b\tc", "\uff21\uff42", "\u3000x\u3000", "\x1cx\x1c", "\xa0", "x\u2028", "ｶﾞ", "e\u0301"]
SAMPLES += ["\u0301", "नमस्ते", "Å", "½", "\x85"]


@pytest.mark.hf
def test_normalizing_is_the_published_sequence():
    from tokenizers import Regex, normalizers

    theirs = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.NFD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[ \t\r\n]+"), " "),
            normalizers.Replace(Regex(r"^ $"), "\ue000"),
            normalizers.Strip(),
            normalizers.Replace("\ue000", " "),
        ]
    )
    # Every letter, mark and sign of the scripts that tokenizers have most, between letters too.
    letters = [chr(code) for code in range(0x20, 0x3100) if chr(code).isprintable() or chr(code).isspace()]
    texts = SAMPLES + letters + [f"A{letter} b" for letter in letters]
    different = [text for text in texts if normalize(text) != theirs.normalize_str(text)]
    # Marks and letters that one of the two has a too old Unicode for.
    assert len(different) < len(texts) / 50
    assert not set(different) & set(SAMPLES)


def test_vocabulary_is_compressed_by_first_appearance():
    texts = ["a", "A", " a", "b", "\ufffd", "\ufffd", "", " ", "\n", "B\u0301"]
    tokens = ["a", "A", "Ġa", "b", "0xe2", "0x98", "<pad>", "Ġ", "Ċ", "B́"]
    assert compress_vocabulary(texts, tokens).tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 5, 1]
    with pytest.raises(ValueError, match="2 texts, but 1"):
        compress_vocabulary(["a", "b"], ["a"])


def memory_of(streams=2, dim=6, **options):
    vocabulary = torch.arange(VOCAB) // 2
    plan = plan_layers([2], VOCAB // 2, table_sizes=[31, 37], num_heads=2)[2]
    made = ConditionalMemory(dim, plan, vocabulary, num_streams=streams, ngram_dim=8, pad_id=3, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return made


def reference(memory, x, ids):
    """Token by token, stream by stream, in float64."""
    double = {name: parameter.double() for name, parameter in memory.named_parameters()}
    batch, length, streams, dim = x.shape

    def norm(row, weight):
        return row / (row.square().mean() + memory.norm_eps).sqrt() * weight

    rows = ngram_hashes(memory.vocabulary[ids], memory.plan, pad=int(memory.vocabulary[3])) + memory.offsets
    u = torch.zeros(batch, length, streams, dim, dtype=torch.float64)
    for b in range(batch):
        for t in range(length):
            e = torch.cat([double["table.weight"][row] for row in rows[b, t]])
            value = double["value.weight"] @ e + double["value.bias"]
            keys = (double["key.weight"] @ e + double["key.bias"]).reshape(streams, dim)
            for s in range(streams):
                dot = norm(keys[s], double["key_norm"][s]) @ norm(
                    x[b, t, s].double(), double["query_norm"][s]
                )
                dot = dot / dim**0.5
                u[b, t, s] = torch.sigmoid(dot.sign() * dot.abs().clamp_min(1e-6).sqrt()) * value
    out = x.double() + u
    for b in range(batch):
        for t in range(length):
            for s in range(streams):
                total = torch.zeros(dim, dtype=torch.float64)
                for tap in range(memory.kernel_size):
                    source = t - (memory.kernel_size - 1 - tap) * 3
                    if source >= 0:
                        taps = double["conv"].reshape(streams, dim, -1)[s, :, tap]
                        total = total + taps * norm(u[b, source, s], double["conv_norm"][s])
                out[b, t, s] += torch.nn.functional.silu(total)
    return out


@pytest.mark.parametrize("streams", [1, 2, 4])
def test_equals_the_equations(streams):
    memory = memory_of(streams)
    ids, x = torch.randint(VOCAB, (2, 12)), torch.randn(2, 12, streams, 6)
    x.requires_grad_()
    out, expected = memory(x, ids), reference(memory, x, ids)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn(out.shape)
    names = ["x", *(name for name, _ in memory.named_parameters())]
    wanted = [x, *memory.parameters()]
    grads = torch.autograd.grad((expected * weights).sum(), wanted)
    for name, mine, theirs in zip(
        names, torch.autograd.grad((out * weights).sum(), wanted), grads, strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 1, 6], [2, 10]])
def test_texts_in_pieces_equal_whole_ones(pieces):
    memory, state = memory_of(), MemoryState()
    ids, x = torch.randint(VOCAB, (2, 12)), torch.randn(2, 12, 2, 6)
    parts = zip(x.split(pieces, 1), ids.split(pieces, 1), strict=True)
    out = torch.cat([memory(part, part_ids, state) for part, part_ids in parts], 1)
    torch.testing.assert_close(out, memory(x, ids))


def test_images_add_nothing_and_break_ngrams():
    memory = memory_of(kernel_size=1)
    ids, x = torch.randint(VOCAB, (1, 9)), torch.randn(1, 9, 2, 6)
    ids[0, 4] = -1
    rows = memory.rows(ids)
    assert torch.equal(rows[:, 5:], memory.rows(ids[:, 5:]))
    assert torch.equal(rows[:, :4], memory.rows(ids[:, :4]))
    torch.testing.assert_close(memory(x, ids)[:, 4], x[:, 4])
    assert not torch.allclose(memory(x, ids)[:, 5], x[:, 5])


def test_what_is_refused():
    memory = memory_of()
    with pytest.raises(ValueError, match="outside the vocabulary"):
        memory(torch.zeros(1, 1, 2, 6), torch.tensor([[VOCAB]]))
    with pytest.raises(ValueError, match=r"\(B, T, 2, 6\)"):
        memory(torch.zeros(1, 1, 3, 6), torch.tensor([[0]]))
    plan = plan_layers([0], 5, table_sizes=[7])[0]
    with pytest.raises(ValueError, match="multiple of the 8 heads"):
        ConditionalMemory(6, plan, torch.arange(5), ngram_dim=12)
    with pytest.raises(ValueError, match="pad_id=9"):
        ConditionalMemory(6, plan, torch.arange(5), ngram_dim=8, pad_id=9)
    with pytest.raises(ValueError, match="at least one layer"):
        plan_layers([], 5, table_sizes=[7])
