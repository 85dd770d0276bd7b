"""Finds secrets and personal data in a text, by rules that tell why they match.

A rule is a form that a thing has (a key's prefix, a card's length) and, where the form alone is not enough,
a check (a check digit, how random a value looks). Words are English and German ones. What no rule describes
is not found: this is a net, not a proof.

Every search takes time in proportion to the text: patterns have no nested repeats.

Sources: card numbers ISO/IEC 7812-1 (Luhn check, ranges of issuers); IBAN ISO 13616 (lengths) and ISO 7064
(mod 97-10); phone numbers ITU-T E.164 (at most 15 digits); private keys RFC 7468; JSON Web Tokens RFC 7519;
the services' own descriptions of their keys' prefixes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

# What can be found, the surest first: where two overlap the first one counts.
KINDS = ("private_key", "api_key", "password", "card", "iban", "email", "phone")

_Spans = Iterator[tuple[int, int]]


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """Where something lies in a text: characters `start` to `end`. It does not hold the text."""

    start: int
    end: int
    kind: str


def find(text: str) -> list[Finding]:
    """What there is in a text, in order, none overlapping another."""
    found: list[Finding] = []
    taken = bytearray(len(text))
    for kind in KINDS:
        for start, end in _FINDERS[kind](text):
            if start < end and taken.find(1, start, end) < 0:
                taken[start:end] = b"\x01" * (end - start)
                found.append(Finding(start, end, kind))
    return sorted(found)


_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:.*?-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|.*)",
    re.DOTALL,
)

# One service's form each. The word boundary before keeps a part of a longer word from counting.
_KEY_FORMS = re.compile(
    r"(?<![A-Za-z0-9_])(?:"
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])"  # AWS
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}"
    r"|glpat-[A-Za-z0-9_-]{20,255}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,255}"  # Slack
    r"|[sr]k_(?:live|test)_[A-Za-z0-9]{16,255}|whsec_[A-Za-z0-9]{24,255}"  # Stripe
    r"|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,2048}"  # Google
    r"|sk-(?=[A-Za-z_-]{0,255}\d)[A-Za-z0-9_-]{20,255}"  # OpenAI, Anthropic and others
    r"|hf_[A-Za-z0-9]{30,255}"  # Hugging Face
    r"|npm_[A-Za-z0-9]{36}|pypi-AgE[A-Za-z0-9_-]{50,1024}"
    r"|SG\.[A-Za-z0-9_-]{16,64}\.[A-Za-z0-9_-]{16,64}"  # SendGrid
    r"|eyJ[A-Za-z0-9_-]{8,8192}\.eyJ[A-Za-z0-9_-]{8,8192}\.[A-Za-z0-9_-]{8,8192}"  # JSON Web Token
    r")"
)
# "api_key = VALUE", "the access token is VALUE", "Authorization: Bearer VALUE".
_KEY_NAMED = re.compile(
    r"(?:\b(?:api|access|auth|account|client|secret|private|signing|encryption)[ _-]?(?:access[ _-]?)?"
    r"(?:key|token|secret)\b[\"']?[ \t]*(?:is|are|=>|:=|=|:)?[ \t]*|\bbearer[ \t]+)"
    r"[\"'`]?(?P<value>[A-Za-z0-9+/_.~-]{16,512}={0,2})",
    re.IGNORECASE,
)
# Bits per character from which a value looks drawn at random: words of English have about 3.
_RANDOM_BITS = 3.2

_PASSWORD = re.compile(
    r"\b(?:password|passwd|passphrase|passcode|pwd|passwort|kennwort)\b"
    r"(?P<whose>[ \t]+(?:for|of|to|für)[ \t]+[^\n:=]{1,40}?)?[\"']?[ \t]*"
    r"(?P<sign>is now|is still|is|was|lautet|ist|=>|:=|=|:)[ \t]*"
    r"(?:(?P<quote>[\"'`])(?P<quoted>[^\"'`\n]{3,128})(?P=quote)|(?P<bare>[^\s\"'`]{4,128}))",
    re.IGNORECASE,
)
_PIN = re.compile(r"\bPIN(?:[ -]?(?:code|number))?[ \t]*(?:is|=|:)?[ \t]*(?P<value>\d{4,8})\b(?![-/.]\d)")
_URL_PASSWORD = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s:/@]{0,128}:(?P<value>[^\s@/]{1,256})@")
# What stands where a password would: a variable, a mask, a sentence that goes on.
_PLACEHOLDER = re.compile(
    r"^(?:[<\[{*$%(]|x{3,}|\.{3}|none$|null$|nil$|true$|false$|required$|os\.|process\.)", re.I
)

_DIGIT_RUN = re.compile(r"(?<![\d.,])\d(?:[ -]?\d){12,}")
_CARD_LENGTHS = (19, 18, 17, 16, 15, 14, 13)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,30}")
# Characters of an account number, and the countries that have so many.
_IBAN_COUNTRIES = {
    15: "NO",
    16: "BE",
    18: "DK FI FK FO GL NL SD",
    19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU YE",
    31: "MT SC",
    32: "LC",
    33: "RU",
}
_IBAN_LENGTHS = {country: length for length, names in _IBAN_COUNTRIES.items() for country in names.split()}

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@"
    r"[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,8}\.[A-Za-z]{2,24}(?![A-Za-z0-9-])"
)

_PHONE_ABROAD = re.compile(r"(?<![\w+])\+\d[\d .\-/]{0,4}(?:\(\d{1,4}\))?[\d .\-/]{5,20}")
_PHONE_AMERICAN = re.compile(r"(?<![\w+.-])\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}(?![\w-])")
_PHONE_NAMED = re.compile(
    r"\b(?:phone|telephone|tel|mobile|cell|handy|telefon|whatsapp|fax"
    r"|call (?:me|him|her|us|them)(?: (?:at|on|under))?)(?:[ ]?(?:number|no\.?|nr\.?|nummer))?"
    r"[ \t]*(?:is|are|ist|=|:|\.)?[ \t]*(?P<value>[(\d][\d ().\-/]{5,24})",
    re.IGNORECASE,
)
_PHONE_DIGITS = (7, 15)  # least and most


def _private_keys(text: str) -> _Spans:
    return (match.span() for match in _PRIVATE_KEY.finditer(text))


def _api_keys(text: str) -> _Spans:
    for match in _KEY_FORMS.finditer(text):
        yield match.span()
    for match in _KEY_NAMED.finditer(text):
        if _looks_random(match["value"]):
            yield match.span("value")


def _looks_random(value: str) -> bool:
    """Whether a value has letters and digits, and no more repetition than a random one."""
    if not (any(map(str.isdigit, value)) and any(map(str.isalpha, value))):
        return False
    counts = Counter(value).values()
    bits = -sum(count / len(value) * math.log2(count / len(value)) for count in counts)
    return bits >= min(_RANDOM_BITS, math.log2(len(value)) - 0.8)


def _passwords(text: str) -> _Spans:
    for match in _PASSWORD.finditer(text):
        if match["quoted"] is not None:
            value, (start, end) = match["quoted"], match.span("quoted")
        else:
            value = match["bare"].rstrip(".,;:!?)]}")
            start = match.start("bare")
            end = start + len(value)
        assigned = match["sign"] in ("=", ":=", "=>")
        last = match["sign"] == ":" and text[end : end + 2].strip(" .,;\r\t")[:1] in ("", "\n")
        telling = match["quoted"] is not None or assigned or last or _unlike_a_word(value)
        if value and telling and not _PLACEHOLDER.match(value):
            yield start, end
    for pattern in (_PIN, _URL_PASSWORD):
        for match in pattern.finditer(text):
            if not _PLACEHOLDER.match(match["value"]):
                yield match.span("value")


def _unlike_a_word(value: str) -> bool:
    """Whether it has what no word of a sentence has: digits, signs inside, or capitals inside."""
    inner = value[1:]
    signs = any(not sign.isalnum() and sign not in "'-" for sign in value)
    return signs or any(map(str.isdigit, value)) or (inner != inner.lower() and not value.isupper())


def _cards(text: str) -> _Spans:
    for run in _DIGIT_RUN.finditer(text):
        for start, end in _cards_in(run.group()):
            yield run.start() + start, run.start() + end


def _cards_in(run: str) -> _Spans:
    """The parts of a run that are cards' numbers: each from and to a separator, or an end."""
    places = [place for place, sign in enumerate(run) if sign.isdigit()]
    digits = "".join(run[place] for place in places)
    breaks = [number for number, (one, next_) in enumerate(pairwise(places), 1) if next_ - one > 1]
    edges = {*breaks, len(places)}
    done = 0
    for start in [0, *breaks]:
        ends = (start + length for length in _CARD_LENGTHS)
        end = next((end for end in ends if end in edges and _is_card(digits[start:end])), None)
        if end is not None and start >= done:
            yield places[start], places[end - 1] + 1
            done = end


def _is_card(digits: str) -> bool:
    return _issuer_takes(digits) and len(set(digits)) > 1 and luhn(digits)


def _issuer_takes(digits: str) -> bool:
    """Whether an issuer has numbers of this length that begin so."""
    length, two, four = len(digits), digits[:2], digits[:4]
    return (
        (digits[:1] == "4" and length in (13, 16, 19))
        or (length == 16 and ("51" <= two <= "55" or "2221" <= four <= "2720" or two == "35"))
        or (length == 15 and two in ("34", "37"))
        or (length == 14 and two in ("30", "36", "38", "39"))
        or (16 <= length <= 19 and (two in ("62", "65") or four == "6011"))
    )


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of those before it (ISO/IEC 7812-1)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _ibans(text: str) -> _Spans:
    place = 0
    while match := _IBAN.search(text, place):
        place = match.start() + 4
        length = _IBAN_LENGTHS.get(match.group()[:2].upper(), 0)
        places = [place for place, sign in enumerate(match.group()) if sign.isalnum()]
        if 0 < length <= len(places):
            compact = "".join(match.group()[place] for place in places[:length]).upper()
            last = places[length - 1] + 1
            if not match.group()[last : last + 1].isalnum() and is_iban(compact):
                place = match.start() + last
                yield match.start(), place


def is_iban(compact: str) -> bool:
    """Whether the check digits of an account number without spaces are right (ISO 7064, mod 97-10)."""
    turned = compact[4:] + compact[:4]
    return int("".join(str(int(sign, 36)) for sign in turned)) % 97 == 1


def _emails(text: str) -> _Spans:
    return (match.span() for match in _EMAIL.finditer(text))


def _phones(text: str) -> _Spans:
    candidates = [match.span() for match in _PHONE_ABROAD.finditer(text)]
    candidates += [match.span() for match in _PHONE_AMERICAN.finditer(text)]
    candidates += [match.span("value") for match in _PHONE_NAMED.finditer(text)]
    for start, longest in candidates:
        end = _end_of_number(text, start, longest)
        if sum(map(str.isdigit, text[start:end])) >= _PHONE_DIGITS[0]:
            yield start, end


def _end_of_number(text: str, start: int, end: int) -> int:
    """Where a number ends: behind a digit, before the group that would make it too long."""
    digits, last = 0, start
    for place in range(start, end):
        if text[place].isdigit():
            digits += 1
            if digits > _PHONE_DIGITS[1]:
                break
            if not text[place + 1 : place + 2].isdigit():
                last = place + 1
    return last


_FINDERS: dict[str, Callable[[str], _Spans]] = {
    "private_key": _private_keys,
    "api_key": _api_keys,
    "password": _passwords,
    "card": _cards,
    "iban": _ibans,
    "email": _emails,
    "phone": _phones,
}
