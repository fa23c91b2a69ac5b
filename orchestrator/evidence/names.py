"""The names of a claim: capitalised words, acronyms and quoted titles, and which of them its quotes lack."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from orchestrator.evidence.dates import take_dates
from orchestrator.evidence.numbers import ROMAN, spelled_numbers
from orchestrator.evidence.spelling import fold

__all__ = ["missing_names", "names_of", "opening_name", "refers_back"]

_SAME = (  # spellings of one thing; a one-word spelling in capitals counts only so
    ("united states of america", "united states", "US", "USA", "america", "american"),
    ("united kingdom", "UK", "great britain", "britain", "british", "england", "english"),
    ("united nations", "UN"),
    ("european union", "EU"),
    ("soviet union", "USSR", "soviet", "soviets"),
    ("world war ii", "world war 2", "second world war", "world war two", "WWII", "WW2"),
    ("world war i", "world war 1", "first world war", "world war one", "great war", "WWI", "WW1"),
    ("new york city", "new york", "NYC", "NY"),
    ("los angeles", "LA"),
    ("television", "TV"),
    ("artificial intelligence", "AI"),
    ("france", "french", "frenchman"),
    ("spain", "spanish", "spaniard"),
    ("netherlands", "dutch", "holland"),
    ("germany", "german", "deutschland"),
    ("greece", "greek", "hellenic"),
    ("poland", "polish", "pole"),
    ("wales", "welsh"),
    ("ireland", "irish"),
    ("scotland", "scottish", "scots", "scotsman"),
    ("denmark", "danish", "dane"),
    ("finland", "finnish", "finn"),
    ("switzerland", "swiss"),
    ("norway", "norwegian"),
    ("turkey", "turkish", "turk"),
    ("peru", "peruvian"),
    ("philippines", "philippine", "filipino"),
    ("czech republic", "czechia", "czech"),
    ("rome", "roman"),
    ("venice", "venetian"),
    ("naples", "neapolitan"),
    ("christianity", "christian", "christians"),
    ("islam", "islamic", "muslim", "muslims"),
    ("judaism", "jewish", "jews", "jew"),
)
_OPTIONAL = frozenset(
    """i mr mrs ms dr prof sir dame lord lady saint st king queen prince princess president minister director professor general captain
    inc corp ltd llc co company corporation plc gmbh ag jr sr the a an of and or in on at by for from to with is was are were
    river mount mountain lake city state county island islands street avenue road republic district province kingdom region sea ocean
    university college school museum church airport station stadium department ministry institute century bc ad bce ce ok earth sun moon
    internet web fc afc north south east west northern southern eastern western central bible god god's""".split()  # noqa: SIM905 - a table of words
)
_WORD = re.compile(r"(?:[^\W\d_]\.){2,}|[^\W_](?:[^\W_]|[.'&](?=[^\W_]))*")
_STARTS = re.compile(r"(?:^|[.!?:;\"(\[{\n\u2022*|/]|\s-|--)\s*[\"'(\[]*$")
_BACK = re.compile(
    r"\b(?:he|she|it|they|his|her|its|their|him|them|the (?:film|song|album|book|novel|band|city|series|show|character|company))\b", re.I
)
# "Escherichia coli (E. coli)", "apolipoprotein E4 (APOE4)": what stands in brackets has a stop, a digit or a second capital.
_ABBREVIATED = re.compile(r"(?<![\w.'-])((?:[\w.'-]+\s+){1,5})\(((?=[^()]*(?:\.|\d|[A-Z][^()]*[A-Z]))[\w.-]+(?: [\w.-]+)?)\)")
_GERMAN = frozenset("der die das und ist nicht mit von ein eine wird wurde auf dem den des im zu".split())  # noqa: SIM905 - a table of words
_ENDINGS = ("ians", "ian", "ans", "an", "ese", "ish", "ies", "ic", "ia", "ey", "land", "is", "es", "s", "y", "i", "a", "o", "n", "e")


@dataclass(frozen=True, slots=True)
class _Name:
    """Capitalised words that follow each other; `first` says that the name opens a sentence."""

    words: tuple[str, ...]
    first: bool


def missing_names(claim: str, quotes: str, *, titled: bool = True) -> list[str]:
    """The words of names in `claim` that `quotes` lack. Not `titled`: the opening name may be who a pronoun of the quotes means."""
    words = [match[0] for match in _WORD.finditer(claim)]
    long = [word for word in words if len(word) > 3]
    if (len(long) > 3 and all(map(_capital, long))) or len({word.lower() for word in words} & _GERMAN) >= 2:
        return []  # a headline, or a language that capitalises its nouns
    have = _known(quotes)
    acronyms = {word for word in _words(quotes) if len(word) > 1 and word.isupper()}
    initials = _initials(quotes)
    missing = []
    for name in _names(claim):
        short = "".join(word[0] for word in name.words if _capital(word)).upper()
        if len(short) > 1 and short in acronyms:
            continue
        missing += [word for place, word in enumerate(name.words) if _absent(word, have, initials, opens=name.first and place == 0)]
    explained = _explained(claim, have)
    if not titled and refers_back(quotes):
        explained |= {fold(word) for word in opening_name(claim)}
    titles = _missing_titles(claim, have)
    return [*(word for word in missing if fold(word) not in explained and not any(word in title for title in titles)), *titles]


def _explained(claim: str, have: set[str]) -> set[str]:
    """Words of "long name (its abbreviation)" of which the quotes know one of the two."""
    explained: set[str] = set()
    for match in _ABBREVIATED.finditer(claim):
        long, short = ([fold(word) for word in _words(side)] for side in match.groups())
        if not short or short[0][0] not in {word[0] for word in long}:
            continue
        if all(_forms(word) & have for word in short):
            explained |= set(long)
        if sum(bool(_forms(word) & have) for word in long) > 0.5 * len(long):
            explained |= set(short)
    return explained


def opening_name(claim: str) -> tuple[str, ...]:
    """The words of the name that a claim opens with; empty where it opens with none."""
    start = _WORD.search(claim)
    first = next(_names(claim), None)
    if start is None or first is None or not first.first:
        return ()
    if start[0].lower() != "the" and fold(first.words[0]) != fold(_words(start[0])[0]):
        return ()
    return () if all(fold(word) in _OPTIONAL for word in first.words) else first.words


def names_of(text: str) -> list[str]:
    """The folded words of the names in `text`, in order; what opens a sentence alone is left out, as are titles and kinds."""
    found = [word for name in _names(text) for word in name.words[int(name.first) :]]
    return [fold(word) for word in found if len(word) > 1 and fold(word) not in _OPTIONAL]


def refers_back(text: str) -> bool:
    """Whether `text` speaks of somebody or something that it named before."""
    return _BACK.search(text) is not None


def _capital(word: str) -> bool:
    return word != word.lower()


def _words(text: str) -> list[str]:
    """The words of `text`; "U.S." is "US" and a possessive is its owner."""
    found = (match[0] for match in _WORD.finditer(text))
    undotted = (word.replace(".", "") if "." in word else word for word in found)
    return [re.sub(r"'(?:s|S)?$", "", word) if "'" in word else word for word in undotted]


def _names(claim: str) -> Iterator[_Name]:
    run: list[str] = []
    first, end = False, 0
    _, text = take_dates(claim)
    for match in _WORD.finditer(text):
        gap = text[end : match.start()] if run else ""
        if run and gap not in (" ", "-", " & ") and not (gap == ". " and len(run[-1]) <= 3):
            yield _Name(tuple(run), first)
            run = []
        if _capital(match[0]):
            if not run:
                first = _STARTS.search(text[max(0, match.start() - 40) : match.start()]) is not None
            run += _words(match[0])
            end = match.end()
        elif run:
            yield _Name(tuple(run), first)
            run = []
    if run:
        yield _Name(tuple(run), first)


def _absent(word: str, have: set[str], initials: str, *, opens: bool) -> bool:
    """Whether the quotes know this word of a name under no spelling."""
    folded = fold(word)
    if len(folded) < 2 or folded in _OPTIONAL or folded.isdigit() or any(form in have for form in _forms(folded)):
        return False
    if word in ROMAN or re.fullmatch(r"\d+\w{0,2}", folded):
        return word in ROMAN and str(ROMAN[word]) not in have and len(word) > 1
    inner = sum(c.isupper() for c in word) > 1 or any(c.isdigit() for c in word)
    if opens and not inner:
        return False
    if inner and len(folded) <= 6:
        letters = re.sub(r"[^a-z]", "", folded.removesuffix("s") if word.endswith("s") else folded)
        return not (len(letters) < 2 or letters in initials or _abbreviates(letters, have))
    return True


def _abbreviates(letters: str, have: set[str]) -> bool:
    """Whether one long word holds the letters in order, as "interleukin" does for IL."""
    pattern = re.compile(".*".join(letters))
    return any(len(word) > 2 * len(letters) and pattern.match(word) for word in have)


def _initials(text: str) -> str:
    """The first letters of all words, with and without the small ones, parts of compounds apart."""
    words = [fold(word) for word in re.findall(r"[^\W\d_]+", text)]
    large = [word for word in words if word not in ("of", "the", "and", "for", "in", "de", "a", "on", "to")]
    return "".join(word[0] for word in words) + " " + "".join(word[0] for word in large)


@lru_cache(maxsize=16_384)
def _forms(word: str) -> frozenset[str]:
    """A word and what is left of it without the endings that turn a place into its people, or one into many."""
    endings = (ending for ending in _ENDINGS if word.endswith(ending) and len(word) - len(ending) >= (3 if ending == "s" else 4))
    return frozenset((word, *(word[: -len(ending)] for ending in endings)))


def _known(text: str) -> set[str]:
    """Every form of every word of `text`, with the other spellings of what it names."""
    words = _words(text)
    folded = [fold(word) for word in words]
    flat = f" {re.sub(r'[^a-z0-9]+', ' ', ' '.join(folded))} "
    have = {form for word in folded for form in _forms(word)}
    have |= {left + right for left, right in pairwise(folded) if len(left) + len(right) < 24}
    have |= {str(int(value)) for number in spelled_numbers(text) for value in number.values} | {
        str(ROMAN[word]) for word in words if word in ROMAN
    }
    have |= set(re.findall(r"\d+", text))
    for spellings in _SAME:
        if any(spelling in words if spelling.isupper() else f" {spelling} " in flat for spelling in spellings):
            have |= {part.lower() for spelling in spellings for part in spelling.split()}
    return have


def _missing_titles(claim: str, have: set[str]) -> list[str]:
    """Quoted titles ("Read It and Weep") of which a word of weight is missing."""
    titles = [title for title in re.findall(r'"([^"]{2,80})"', claim) if title[:1].isupper() and " " in title.strip()]
    return [f'"{title}"' for title in titles if any(len(w) > 3 and not _forms(fold(w)) & have for w in _words(title))]
