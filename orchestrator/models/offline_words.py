"""Words of a text as the offline model compares them: folded, stemmed, without function words; and its sentences."""

import re
from collections.abc import Iterator
from functools import lru_cache

from orchestrator.evidence import fold
from orchestrator.text import trimmed

__all__ = ["content", "negated", "opposites", "sentences", "stem", "words"]

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_FUNCTION_WORDS = """
a about above after again all also although am among an and any are as at be because been before being between both but by can could
did do does doing done down during each either for from further had has have having he her here hers him his how i if in into is it
its itself just may me might more most much must my of off on once one only or other our out over own per same shall she should since
so some such than that the their them then there these they this those through thus to too under until up upon us very was we were
what when where which while who whom whose why will with within would you your s t d ll re ve etc eg ie via
"""
_STOP = frozenset(_FUNCTION_WORDS.split())
_NEGATING = """
no not never none neither nor without cannot nobody nothing hardly scarcely unable incapable inability fail failed fails failing
lack lacks lacked lacking absence refuse refused refuses decline declined deny denied denies
"""
_NEGATIONS = frozenset(_NEGATING.split())
# Cues that point one way and the other. They tell a contradiction only where the rest of the claim is covered.
_IDLE_NEGATION = re.compile(r"\b(?:not only|no (?:less|fewer|more|later) than|no\. ?\d+|no doubt)\b", re.IGNORECASE)
# Words that say the same, under one stem.
_SYNONYMS = """
film movie | play portray star act | begin start commence launch | founded establish | receive award win obtain | large big great huge
buy purchase acquire | build construct erect | locate situate | kill murder assassinate | nation country | main primary principal chief
famous renowned | song track single | marry wed spouse | help aid assist | show demonstrate reveal indicate suggest
cause trigger | need require | use utilize employ | decrease reduce diminish lower lessen | increase raise elevate
enhance boost improve | important critical essential crucial | die death | fast quick rapid | illness disease disorder | drug medication
people person individual | doctor physician | end finish conclude | allow permit let | name call title entitle | release issue publish
air broadcast | contain include comprise consist | tumor tumour cancer carcinoma | author write pen | role part | mother mom mum
father dad | child kid | job occupation profession | shop store | company firm business | ship vessel boat | immigrate emigrate
regulate control modulate | suppress inhibit | affect influence impact | link associate correlate | risk likelihood chance
"""
_AXES = """
increase increased increases higher high greater more elevated raise raised rise rising rose enhance enhanced improve improved
upregulated grow grew longer larger bigger stronger better gain promote stimulate activate induce elevate maximum most /
decrease decreased decreases lower low less fewer reduced reduce reduction reduces diminished diminish impair impaired decline
declined drop dropped fall fell downregulated shrink shrank shorter smaller weaker worse loss inhibit suppress prevent limit
minimum least attenuate | first earliest oldest / last latest youngest | before earlier / after later | older elder / younger |
begin start open / end finish close | north northern / south southern | east eastern / west western | male man men boy father
son brother husband king actor / female woman women girl mother daughter sister wife queen actress | born / die | win won
victory / lose lost defeat | success successful succeed / unsuccessful failure | largest biggest longest highest tallest best
strongest / smallest shortest lowest worst weakest | positive benefit beneficial protective protect / negative harm harmful
detrimental | resistance resistant resist / susceptibility susceptible sensitive | accept allow support / reject forbid ban
oppose | fiction fictional / nonfiction factual | public / private | alive living / dead | common frequent / rare | same similar
identical / different distinct | acute / chronic | major / minor | dependent / independent
"""
_SUFFIXES = (
    *("ational", "isation", "ization", "fulness", "ousness", "iveness", "ations", "ation", "ements", "ement", "ically", "ingly", "ities"),
    *("ments", "ment", "ances", "ance", "ences", "ence", "ions", "ion", "ates", "ated", "ating", "ator", "ators", "ate", "izes", "ized"),
    *("izing", "ize", "ises", "ised", "ising", "ise", "ness", "able", "ible", "ally", "edly", "ical", "ings", "ing", "ers", "ors", "ive"),
    *("ies", "ied", "ity", "ous", "ful", "est", "ed", "es", "ly", "er", "or", "al", "ic", "s", "e", "y"),
)
_IRREGULAR = """
wrote:write written:write began:begin begun:begin won:win lost:lose sold:sell bought:buy made:make found:find founded:found led:lead
grew:grow grown:grow fell:fall fallen:fall rose:rise risen:rise sang:sing sung:sing took:take taken:take gave:give given:give went:go
gone:go came:come became:become held:hold born:birth died:die death:die dead:die dies:die built:build taught:teach
thought:think children:child men:man women:woman feet:foot people:person persons:person wives:wife lives:live life:live
known:know knew:know spoke:speak spoken:speak stood:stand ran:run shot:shoot chose:choose chosen:choose drew:draw drawn:draw
flew:fly met:meet left:leave kept:keep sent:send spent:spend lower:low higher:high fewer:few
lay:lie movie:film movies:film films:film species:species series:series
"""
_BASES = dict(pair.split(":") for pair in _IRREGULAR.split())
_BREAK = re.compile(r"(?<=[.!?])[\"'”’)\]`*]*\s+(?=[\"'“‘(\[`*]*[^\Wa-z_]|`)|\n\s*\n|\n(?=\s*(?:[-*•#|>]|\d+[.)]\s))")
_ABBREVIATION = re.compile(
    r"(?:\b(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|No|Fig|Vol|Rev|Gen|Col|Capt|Lt|Sgt|Gov|Sen|Rep|Hon|Mt|Ft|Inc|Co|Corp|Ltd|Bros|approx|ca|cf|al)"
    r"|\b(?:e\.g|i\.e|[A-Za-z]\.[A-Za-z]))\.$"
)


def words(text: str) -> list[str]:
    """The words of `text`, folded; a possessive is its owner."""
    return [word.removesuffix("'s") for word in _WORD.findall(fold(text))]


@lru_cache(maxsize=50_000)
def stem(word: str) -> str:
    """The stem of a folded word; words that say the same share one."""
    cut = _cut(word)
    return _CANONICAL.get(cut, cut)


def _cut(word: str) -> str:
    word = _BASES.get(word, word)
    if len(word) < 4 or word.isdigit():
        return word
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= (3 if suffix in ("s", "es", "ed", "e", "ing", "y", "ies") else 4):
            word = word[: -len(suffix)]
            break
    if len(word) > 4 and word[-1] == word[-2] and word[-1] not in "ls":
        word = word[:-1]
    return word[:-1] if len(word) > 4 and word[-1] in "ei" else word


def content(text: str) -> list[str]:
    """The stems of the content words of `text`, in order; negations are none."""
    return [stem(word) for word in words(text) if word not in _STOP and word not in _NEGATIONS and not word.endswith("n't")]


def negated(text: str) -> tuple[int, frozenset[str]]:
    """How many words of `text` negate, and the stems of the content words that follow them closely."""
    found = words(_IDLE_NEGATION.sub(" ", text))
    places = [
        place
        for place, word in enumerate(found)
        if word in _NEGATIONS or word.endswith("n't") or (word == "yet" and found[place + 1 : place + 2] == ["to"])
    ]
    return len(places), frozenset(stem for place in places for stem in content(" ".join(found[place + 1 : place + 5])))


def opposites(word: str) -> frozenset[str]:
    """The stems that say the opposite of a stem: by cue, or by a prefix that negates."""
    plain = {word[len(prefix) :] for prefix in _PREFIXES if word.startswith(prefix) and len(word) - len(prefix) > 4}
    return _OPPOSITES.get(word, frozenset()) | plain | {prefix + word for prefix in _PREFIXES if len(word) > 4}


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """The sentences of `text` as offsets [start, end), without blanks around them."""
    start = 0
    for match in _BREAK.finditer(text):
        if "\n" not in match[0] and _ABBREVIATION.search(text, max(0, match.start() - 12), match.start()):
            continue
        yield from trimmed(text, start, match.start() + len(match[0]) - len(match[0].lstrip("\"'”’)]`*")))
        start = match.end()
    yield from trimmed(text, start, len(text))


def _opposite_stems() -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for axis in _AXES.split("|"):
        left, right = (frozenset(stem(word) for word in side.split()) for side in axis.split("/"))
        for word, others in [*((word, right) for word in left), *((word, left) for word in right)]:
            found[word] = found.get(word, frozenset()) | others
    return found


_PREFIXES = ("un", "in", "de", "dis", "non", "anti", "im", "ir")
_CANONICAL = {_cut(word): _cut(row.split()[0]) for row in re.split(r"[|\n]", _SYNONYMS.strip()) for word in row.split()}
_OPPOSITES = _opposite_stems()
