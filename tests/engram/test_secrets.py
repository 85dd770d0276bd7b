"""What the rules find in a text, what they let be, and what a policy makes of it."""

from __future__ import annotations

import random
import string
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratakv.engram.policy import Policy
from stratakv.engram.secrets import KINDS, find, is_iban, luhn
from stratakv.errors import RefusedError, StrataError

# Put together here, so that this file has no key in it that a scanner of repositories would report.
PEM = "-----BEGIN {0}PRIVATE KEY-----\nMIIBOgIBAAJBAK\nabc=\n-----END {0}PRIVATE KEY-----"
LETTERS = "a8Kd02LmQz91XcVb7NhG4tRe6Wy3UjIoPa5SdFgH"
FOUND = [
    ("private_key", PEM.format("")),
    ("private_key", PEM.format("OPENSSH ")),
    ("private_key", "-----BEGIN RSA PRIVATE KEY-----\nand the rest is cut off"),
    ("api_key", "AKIA" + "IOSFODNN7EXAMPLE"),
    ("api_key", "ghp_" + LETTERS[:36]),
    ("api_key", "github_pat_" + LETTERS[:22]),
    ("api_key", "glpat-" + LETTERS[:20]),
    ("api_key", "xoxb-" + "123456789012-abcdefghij"),
    ("api_key", "sk_live_" + LETTERS[:24]),
    ("api_key", "AIza" + LETTERS[:35]),
    ("api_key", "sk-" + "ant-api03-" + LETTERS[:30]),
    ("api_key", "sk-" + LETTERS),
    ("api_key", "hf_" + LETTERS[:34]),
    ("api_key", "npm_" + LETTERS[:36]),
    ("api_key", "SG." + LETTERS[:22] + "." + LETTERS[:36]),
    ("api_key", "eyJ" + LETTERS[:20] + ".eyJ" + LETTERS[:20] + "." + LETTERS[:20]),
    ("card", "4111 1111 1111 1111"),
    ("card", "5500-0000-0000-0004"),
    ("card", "378282246310005"),
    ("card", "6011000990139424"),
    ("card", "30569309025904"),
    ("iban", "DE89 3704 0044 0532 0130 00"),
    ("iban", "GB82WEST12345698765432"),
    ("iban", "no9386011117947"),
    ("email", "ana.b+shop@mail.example.co.uk"),
    ("phone", "+49 (0)30 1234567"),
    ("phone", "+1-202-555-0143"),
    ("phone", "(202) 555-0143"),
]


@pytest.mark.parametrize(("kind", "secret"), FOUND)
def test_each_kind_is_found_to_the_character(kind, secret):
    text = f"before {secret} after" if "cut off" not in secret else f"before {secret}"
    (finding,) = find(text)
    assert finding.kind == kind
    assert text[finding.start : finding.end] == secret


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("my password is hunter2, remember it", "password", "hunter2"),
        ("the password for the router is Tr0ub4dor&3.", "password", "Tr0ub4dor&3"),
        ('PASSWORD="correct horse battery"', "password", "correct horse battery"),
        ("pwd=swordfish", "password", "swordfish"),
        ("Password: swordfish\nUser: ana", "password", "swordfish"),
        ("Das Passwort lautet Geheim99", "password", "Geheim99"),
        ("the PIN is 4821", "password", "4821"),
        ("postgres://ana:s3cret@db.example.com/shop", "password", "s3cret"),
        (f"api_key = '{LETTERS[:24]}'", "api_key", LETTERS[:24]),
        (f"the access token is {LETTERS[:30]}", "api_key", LETTERS[:30]),
        (f"Authorization: Bearer {LETTERS[:30]}", "api_key", LETTERS[:30]),
        ("call me at 030 1234567 please", "phone", "030 1234567"),
        ("phone: 0171/2345678.", "phone", "0171/2345678"),
        ("card 4111111111111111 123", "card", "4111111111111111"),
        ("pay to DE89370400440532013000 today", "iban", "DE89370400440532013000"),
    ],
)
def test_what_is_named_is_found_and_only_the_value(text, kind, value):
    assert [(one.kind, text[one.start : one.end]) for one in find(text)] == [(kind, value)]


@pytest.mark.parametrize(
    "text",
    [
        "I forgot my password again",
        "the password is stored hashed",
        "password: required",
        "password=$DB_PASSWORD",
        "password = <your password>",
        "the api key is kept in the vault of the company somewhere",
        "sk-learn-is-a-library-for-machine-learning",
        "order 4111 1111 1111 1112 has shipped",
        "the 16 digits 1234567890123456 are no card",
        "0000 0000 0000 0000",
        "2024-05-06 12:30:00.123456",
        "DE00 3704 0044 0532 0130 00",
        "write to ana at example dot com",
        "@ana merged it, see a@b",
        "version 1.2.3 of 2024-11-27, 300 tokens, port 5432",
        "commit 3f2a9c01d4e5b6a7f8091a2b3c4d5e6f70819203",
        "the ratio was 3.14159265358979323846",
        "it spins at 7200 rpm",
        "a PIN is needed for the door",
    ],
)
def test_ordinary_text_has_none(text):
    assert find(text) == []


def test_check_digits():
    assert luhn("79927398713")
    assert not luhn("79927398710")
    assert is_iban("GB82WEST12345698765432")
    assert not is_iban("GB82WEST12345698765423")


def test_several_are_found_in_order_and_none_twice():
    text = "ana@example.com, 4111111111111111, https://ana:pa55@example.com, +49 30 1234567"
    assert [one.kind for one in find(text)] == ["email", "card", "password", "phone"]


@given(st.text(alphabet=string.printable + "äß\u200b\u0661", max_size=300))
def test_any_text_is_searched_and_findings_are_apart(text):
    found = find(text)
    assert all(one.kind in KINDS and 0 <= one.start < one.end <= len(text) for one in found)
    assert all(one.end <= after.start for one, after in pairwise(found))


@given(st.integers(0, 2**32), st.sampled_from(KINDS))
def test_masked_text_has_nothing_to_mask_and_keeps_the_rest(seed, kind):
    rng = random.Random(seed)
    secrets = [secret for name, secret in FOUND if name == kind] or ["password: x9#kQ2"]
    parts = ["well", rng.choice(secrets), "and so on"]
    policy = Policy.all("mask")
    masked = policy.check("\n".join(parts)).text
    assert masked.startswith("well\n")
    assert "[" in masked
    assert policy.check(masked).text == masked
    assert find(masked) == []


@pytest.mark.parametrize(
    "unit", ["4 ", "+1", "a@", "password is ", "DE12 ", "sk-", "eyJ.", "-----BEGIN ", "x:/"]
)
def test_no_text_takes_longer_than_in_proportion(unit):
    """A megabyte of what a pattern begins with: a search with nested repeats would not come back."""
    find(unit * (1_000_000 // len(unit)))


class TestPolicy:
    def test_the_default(self):
        checked = Policy().check("mail ana@example.com, card 4111111111111111, password: hunter2")
        assert checked.text == "mail ana@example.com, card [card number], password: [password]"
        assert (checked.masked, checked.stored) == ({"card": 1, "password": 1}, {"email": 1})
        with pytest.raises(RefusedError, match="private key at characters 5 to"):
            Policy().check(f"this {PEM.format('')}")

    def test_a_refusal_does_not_tell_what_it_refuses(self):
        text = " ".join(["4111111111111111", "ana@example.com"] * 3)
        with pytest.raises(RefusedError) as refusal:
            Policy.all("refuse").check(text)
        assert isinstance(refusal.value, StrataError)
        assert isinstance(refusal.value, ValueError)
        assert "card number at characters 0 to 16" in str(refusal.value)
        assert "and 3 more" in str(refusal.value)
        assert "4111" not in str(refusal.value)
        assert "ana" not in str(refusal.value)

    def test_storing_everything_changes_nothing(self):
        text = " ".join(secret for _, secret in reversed(FOUND))
        checked = Policy.all("store").check(text)
        assert checked.text == text
        assert checked.masked == {}
        # The key that is cut off reaches to the next one's end.
        assert sum(checked.stored.values()) == len(FOUND) - 1

    def test_values_of_json_are_masked_wherever_they_are(self):
        value = {"to": ["ana@example.com", 4, None, {"pay ana@example.com": True}]}
        masked, counts = Policy.all("mask").check_value(value)
        assert masked == {"to": ["[e-mail address]", 4, None, {"pay [e-mail address]": True}]}
        assert counts == {"email": 2}

    def test_other_actions_are_named(self):
        with pytest.raises(ValueError, match="card='drop': accepted are refuse, mask, store"):
            Policy(card="drop")
