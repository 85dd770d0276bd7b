"""Facts out of what the user says, by rules: no model, nothing made up.

A fact is a sentence of the turn as it was said, its relative dates resolved. The rules know English ways to
say what one prefers, wants always, decided, is, has and plans. Questions, suppositions, code and quotations
are not looked at, nor what the assistant says: what it knows of the user came from the user, or from memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time

from stratakv.engram.dates import find_dates, resolved
from stratakv.engram.facts import Extracted, Fact
from stratakv.engram.memory import Memory
from stratakv.engram.turns import Turn

SENTENCE_CHARACTERS = (8, 400)  # least and most
_BREAK = re.compile(r"(?<=[.!?…])[\"')\]]*\s+|\n+|(?<=;)\s+")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*\n[^`\n]*`", re.DOTALL)
_QUOTED = re.compile(r"^\s*(?:>|\||#{1,6} |\$ |\d{1,2}:\d{2})", re.MULTILINE)
_QUESTION = re.compile(
    r"\?\W*$|^(?:so |and |but |ok(?:ay)?,? )?(?:what|why|how|when|where|who|whom|whose|which|can|could"
    r"|would|should"
    r"|do|does|did|is|are|was|were|will|shall|may|has|have) (?!n't\b)(?:i|you|we|they|he|she|it|the|this"
    r"|that|there"
    r"|my|our|your|a|an|to|many|much|long|old|kind|is|are|do|does|did|was|should|can|would)\b",
    re.IGNORECASE,
)
_SUPPOSED = re.compile(
    r"^(?:if|imagine|suppose|assume|say|let'?s say|let'?s assume|for example|e\.g\.|pretend"
    r"|hypothetically|unless)\b"
    r"|\b(?:if i (?:were|was|had)|i wish|as if|used to)\b",
    re.IGNORECASE,
)
_HEDGE = re.compile(
    r"\b(?:maybe|perhaps|might|not sure|i guess|i think|probably|possibly|thinking (?:about|of)|considering"
    r"|wondering|could be|would like to|i'd like to|i'd love to)\b",
    re.IGNORECASE,
)
_HEDGED = 0.35
_NAMED = re.compile(r"(?<=[a-z,] )[A-Z][\w-]+|\d")
_CONCRETE = 0.05

_ADVERBS = (
    r"(?:(?:really|much|generally|usually|strongly|absolutely|also|always|still|definitely|personally"
    r"|just|do) )*"
)
_RELATIVES = (
    r"(?:wife|husband|partner|girlfriend|boyfriend|fianc[ée]e?|son|daughter|kids?|child|children|baby"
    r"|sister|brother"
    r"|mother|mom|mum|father|dad|parents|grand(?:mother|father|ma|pa)|aunt|uncle|cousin|niece|nephew"
    r"|boss|manager"
    r"|colleague|coworker|co-worker|teammate|friend|best friend|neighbou?r|roommate|flatmate|teacher"
    r"|doctor|dentist"
    r"|landlord|client|customer|cat|dog|pet|horse)s?"
)
_THINGS = (
    r"(?:project|repo|repository|service|app|application|api|back[ -]?end|front[ -]?end|database"
    r"|codebase|team|company"
    r"|start-?up|product|website|site|server|cluster|pipeline|deadline|release|launch|deployment|budget"
    r"|stack|model"
    r"|library|framework|thesis|paper|book|course|exam|flight|trip|wedding|meeting|interview|appointment)s?"
)
_THING_IS = (
    rf"(?:[\w-]+ ){{0,3}}{_THINGS}(?:'s)? (?:[\w-]+ ){{0,3}}(?:is|are|uses?|runs?|has|have|will|was|were"
    rf"|lives?|deploys?"
    r"|depends|needs?|starts?|begins?|ends?|costs?|called|named|supports?)\b"
)
# What an assistant is told to do always, or never.
_ORDERS = (
    r"answer|reply|respond|use|write|call|show|give|add|include|put|keep|start|begin|end|explain|format"
    r"|ask|check|run"
    r"|test|make|be|tell|mention|remind|suggest|assume|speak|talk|translate|cite|quote|avoid|send|deploy"
    r"|commit|push"
    r"|merge|delete|address|return|wrap|provide|list|name|sign|round|convert|skip|omit|stop|apologi[sz]e"
    r"|swear|create"
    r"|change|touch|edit|remove|import|store|share|schedule|book|order|buy|serve|recommend|summari[sz]e"
    r"|review|refer"
    r"|don't|do not|prefer|propose|offer|read|open|install|update|reformat|lint|document|print|log|hardcode"
)
_TRADE = (
    r"(?:engineer|developer|programmer|designer|teacher|doctor|nurse|student|researcher|scientist"
    r"|manager|founder"
    r"|lawyer|writer|artist|musician|consultant|analyst|architect|accountant|professor|physicist|chemist"
    r"|biologist"
    r"|mathematician|journalist|chef|pilot|electrician|carpenter|mechanic|dentist|pharmacist|freelancer"
    r"|contractor"
    r"|administrator|sysadmin|librarian|translator|photographer|postdoc|intern|lecturer)"
)


@dataclass(frozen=True)
class Rule:
    """A form of sentence, what it tells, and how much that matters; `slot`: what there is one of only."""

    pattern: re.Pattern[str]
    kind: str
    salience: float
    slot: str | Callable[[re.Match[str]], str | None] | None = None

    def slot_of(self, match: re.Match[str]) -> str | None:
        """The slot of a sentence."""
        return self.slot(match) if callable(self.slot) else self.slot


def _rule(
    pattern: str, kind: str, salience: float, slot: str | Callable[[re.Match[str]], str | None] | None = None
) -> Rule:
    return Rule(re.compile(pattern, re.IGNORECASE), kind, salience, slot)


def _favourite(match: re.Match[str]) -> str | None:
    if match["some"]:
        return None  # there may be others
    thing = re.sub(r"\s+", " ", match["thing"].lower()).strip()
    return f"favourite {thing}"


def _attribute(match: re.Match[str]) -> str:
    return match["attribute"].lower().replace(" ", "").replace("-", "")


# The first rule that a sentence fits is taken.
RULES = (
    # What the assistant is to do from now on.
    _rule(
        rf"^(?:(?:also|and|please|ok(?:ay)?|so)[, ]+)*(?:always|never|in (?:the )?future,?)"
        rf" (?:please |do |always |never )*(?:{_ORDERS})\b",
        "instruction",
        0.9,
    ),
    _rule(r"\b(?:from now on|going forward)\b", "instruction", 0.85),
    _rule(
        r"^(?:please )?(?:don't|do not|stop) (?:ever |calling me|using|adding|writing|apologi[sz]ing"
        r"|asking)",
        "instruction",
        0.75,
    ),
    _rule(
        r"\b(?:i want|i'd like|i would like|i expect|i need) you to (?:always|never)\b"
        r"|\byou (?:should|must) (?:always|never)\b",
        "instruction",
        0.9,
    ),
    _rule(
        r"^(?:please )?(?:always )?(?:answer|reply|respond|write)(?: to)?(?: me)? (?:only |always )*"
        r"(?:in (?:english|german|french|spanish|italian|portuguese|dutch|polish|russian|japanese"
        r"|chinese|korean|turkish"
        r"|arabic|hindi)|briefly|concisely|formally)\b",
        "instruction",
        0.75,
        "language of answers",
    ),
    # Who the user is.
    _rule(
        r"\b(?:my name is|call me|i'm called|i am called|i go by) (?!if|when|back|at|on|to)[A-Za-zÀ-ž]",
        "identity",
        0.95,
        "name",
    ),
    _rule(
        r"\bmy (?P<attribute>pronouns|birthday|birth date|time ?zone|native language|mother tongue"
        r"|home ?town|nationality"
        r"|job|profession|blood type|shoe size|address|e-?mail(?: address)?|(?:phone|mobile)(?: number)?"
        r"|wedding anniversary)"
        r" (?:is|are)\b",
        "identity",
        0.9,
        _attribute,
    ),
    _rule(
        r"\bi(?:'m| am)?(?: currently| now| still)* (?:live|living|based|residing) in\b"
        r"|\b(?:i|we)(?:'ve| have)?(?: just| recently)? moved to (?-i:[A-Z])",
        "identity",
        0.9,
        "home",
    ),
    _rule(r"\bi(?:'m| am)?(?: currently| now)* (?:work|working) (?:at|for)\b", "identity", 0.85, "employer"),
    _rule(
        rf"\bi(?:'m| am)(?: currently| now)? an? (?:[\w-]+ ){{0,4}}{_TRADE}\b|\bi(?: currently"
        rf"| now)? work as\b",
        "identity",
        0.85,
        "occupation",
    ),
    _rule(
        r"\bi (?:was born|grew up|studied|graduated|speak (?-i:[A-Z])|come from)\b"
        r"|\bi(?:'m| am) (?:from (?-i:[A-Z])|married|single|divorced|\d{1,3} years old)",
        "identity",
        0.8,
    ),
    _rule(
        r"\bi(?:'m| am) (?:an? )?(?:strict )?(?:vegan|vegetarian|pescatarian)\b", "preference", 0.9, "diet"
    ),
    _rule(
        r"\bi(?:'m| am) (?:allergic to|intolerant|lactose|coeliac|celiac|diabetic|colou?r-?blind"
        r"|left-handed|deaf|blind)",
        "identity",
        0.95,
    ),
    # What the user likes.
    _rule(
        r"\b(?P<some>(?:one|some) of )?my favou?rite (?P<thing>[\w -]{2,40}?) (?:is|are|was)\b",
        "preference",
        0.85,
        _favourite,
    ),
    _rule(
        rf"\bi {_ADVERBS}(?:prefer|love|adore|enjoy|hate|dislike|loathe|favou?r|can't stand|cannot stand"
        rf"|am (?:a (?:big |huge )?fan of"
        r"|fond of|into))\b(?! (?:it|this|that|these|those|you|your|how|when|the (?:way|idea|thought"
        r"|fact|sound))\b)[ ]+\w",
        "preference",
        0.8,
    ),
    _rule(
        rf"\bi {_ADVERBS}like (?!it\b|this\b|that\b|these\b|those\b|you\b|your\b|how\b|when\b|the way\b"
        rf"|the (?:idea|thought|fact|sound)\b|what\b)\w",
        "preference",
        0.75,
    ),
    _rule(
        r"\bi (?:don't|do not|never|can't|cannot) (?:really |usually )*(?:like|eat|drink|smoke|enjoy|use"
        r"|watch|drive|fly)\b"
        r"(?! (?:it|this|that|these|those)\b)",
        "preference",
        0.75,
    ),
    # What was decided.
    _rule(
        r"\b(?:i|we|the team|they|my team)(?:'ve| have| has| had|'re| are)?(?: (?:finally|just|already|all"
        r"|now|also))*"
        r" (?:decided|agreed|chose|chosen|picked|settled on|opted|went with|going with|go with"
        r"|going to use|switched|migrated"
        r"|adopted|dropped|rejected|replaced|standardi[sz]ed on|deprecated)\b",
        "decision",
        0.85,
    ),
    _rule(r"\bwe(?:'ve| have)?(?: just| recently)? moved (?:from|to|off|away)\b", "decision", 0.8),
    _rule(r"\bi(?:'ve| have)?(?: just| recently)? moved (?:from|off|away from)\b", "decision", 0.8),
    _rule(r"^(?:decision|decided|agreed|conclusion)\s*:", "decision", 0.9),
    _rule(
        r"\b(?:we|i) will (?:use|go with|stick with|keep using)\b|^let'?s (?:go with|use|stick with)\b",
        "decision",
        0.65,
    ),
    # People and things of the user's.
    _rule(
        rf"\b(?:my|our) (?:[\w-]+ ){{0,2}}{_RELATIVES}(?:'s name| [A-ZÀ-Ž][\w-]+)?,? (?:is|are|was|were"
        rf"|has|have|works?|lives?|likes?"
        r"|loves?|hates?|called|named|studies|plays|speaks?|teaches|turns?|just|recently|got|will|wants?"
        r"|needs?)\b",
        "person",
        0.75,
    ),
    _rule(
        rf"\b(?:i|we) (?:have|got|adopted) (?:an?|two|three|four|\d) (?:[\w-]+ ){{0,3}}{_RELATIVES}\b",
        "person",
        0.75,
    ),
    _rule(rf"\b(?:my|our) {_THING_IS}", "project", 0.6),
    # Of what is not theirs only what has a name, a number or a date is kept.
    _rule(rf"\bthe {_THING_IS}", "project", 0.45),
    _rule(
        r"\b(?:i(?:'m| am)|we(?:'re| are))(?: currently| now)? (?:working on|building|developing"
        r"|migrating|writing (?:an?|my|our)"
        r"|learning|training for|preparing for|planning)\b",
        "project",
        0.7,
    ),
    _rule(
        r"^(?:please )?(?:(?:remember|note|keep in mind|don't forget) that\b|(?:remember|note|fyi) ?:"
        r"|fyi,? |(?:remember|note|keep in mind|don't forget),? (?:i|i'm|we|my|our)\b)",
        "note",
        0.9,
    ),
)
_OWN = re.compile(r"\b(?:i|i'm|i've|i'll|we|we're|we've|we'll|my|our)\b", re.IGNORECASE)
_EVENT_SALIENCE = 0.6


class RuleExtractor:
    """Facts by the rules of this module."""

    name = "rules"

    def extract(self, turns: Sequence[Turn], known: Sequence[Memory]) -> Extracted:
        """The facts of the user's turns; `known` is of no use to rules."""
        facts = [fact for turn in turns if turn.role == "user" for fact in facts_of(turn)]
        return Extracted(facts=facts)


def facts_of(turn: Turn) -> Iterator[Fact]:
    """The facts of one turn."""
    said = turn.time.date()
    for sentence in sentences(turn.text):
        found = _told(sentence, bool(find_dates(sentence, said)))
        if found is None:
            continue
        kind, salience, slot = found
        if _HEDGE.search(sentence):
            salience -= _HEDGED
        elif _NAMED.search(sentence):
            salience += _CONCRETE
        dates = find_dates(sentence, said)
        begins = None
        if len(dates) == 1 and kind in ("event", "decision", "identity", "project"):
            begins = datetime.combine(dates[0].first, time(), UTC)
        yield Fact(
            kind=kind,
            text=resolved(sentence, said),
            turn=turn.id,
            salience=min(max(salience, 0.0), 1.0),
            slot=slot,
            valid_from=None if begins is None or begins.date() == said else begins,
        )


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text that state something: no code, quotation, question or supposition."""
    for line in _CODE.sub("\n", text).splitlines():
        if _QUOTED.match(line):
            continue
        for piece in _BREAK.split(line):
            sentence = re.sub(r"\s+", " ", piece).strip(" \t-*•")
            least, most = SENTENCE_CHARACTERS
            stated = least <= len(sentence) <= most and not _QUESTION.search(sentence)
            if stated and not _SUPPOSED.search(sentence):
                yield sentence


def _told(sentence: str, dated: bool) -> tuple[str, float, str | None] | None:
    """Kind, salience and slot of a sentence; None where it tells nothing to keep."""
    for rule in RULES:
        match = rule.pattern.search(sentence)
        if match is not None:
            return rule.kind, rule.salience, rule.slot_of(match)
    if dated and _OWN.search(sentence):
        return "event", _EVENT_SALIENCE, None
    return None
