"""Documents searched and read: passages, links between documents, pages added in a run."""

import sqlite3
from itertools import pairwise
from pathlib import Path

import pytest

from orchestrator.documents import Library, Passage, open_library
from orchestrator.documents.mentions import analyse
from orchestrator.documents.passages import LONGEST, split
from orchestrator.documents.stemming import stem
from orchestrator.documents.words import terms
from orchestrator.state import Source

FILMS = {
    "the-long-river.txt": "The Long River\n\nThe Long River is a 1962 drama film directed by Anselm Korda and starring Ida Voss.",
    "anselm-korda.txt": "Anselm Korda\n\nAnselm Korda (1921-1990) was a Hungarian director. He came from Szeged.",
    "ida-voss.txt": "Ida Voss\n\nIda Voss was a Dutch actress. She sang in a choir in Utrecht for most of her life.",
    "the-long-road.txt": "The Long Road\n\nThe Long Road is a 1950 film, and not to be taken for another film, The River.",
    "rivers.txt": "Rivers of Europe\n\nThe Danube is a long river. Where rivers were born is where they are named.",
    "szeged.txt": "Szeged\n\nSzeged is a city on the Tisza with a university and a cathedral.",
    "born.txt": "Births\n\nWhere a child was born is written down in a register of births.",
    "directors.txt": "Film directors\n\nA director of a film decides how it is made. Many directors were born in cities.",
}


async def _library(folder: Path, files: dict[str, str]) -> Library:
    _write(folder, files)
    return await open_library([str(folder)])


def _write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(text, encoding="utf-8")


async def _titles(library: Library, query: str, limit: int = 8) -> list[str]:
    return [passage.source.title for passage in await library.search(query, limit)]


async def test_a_question_finds_the_document_that_only_another_one_names(tmp_path: Path) -> None:
    library = await _library(tmp_path / "films", FILMS)
    found = await _titles(library, "Where was the director of the film The Long River born?", 3)
    await library.aclose()
    assert found == ["The Long River", "Film directors", "Anselm Korda"]


async def test_a_name_that_two_documents_share_links_them(tmp_path: Path) -> None:
    files = {
        "a.txt": "Report A\n\nThe turbine of the mill was built by Ottilie Brandt in the year of the flood.",
        "b.txt": "Report B\n\nA bridge in the north was also drawn by Ottilie Brandt, and stands to this day.",
        **{f"n{n}.txt": f"Notes {n}\n\nNothing of interest on day {n}, in the north or on a bridge." for n in range(12)},
    }
    library = await _library(tmp_path / "reports", files)
    found = await _titles(library, "What else did the builder of the mill's turbine make?", 2)
    await library.aclose()
    assert found == ["Report A", "Report B"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("guide/start.md", "# Starting\n\nBefore the zeppelin rises, see [this](../parts/valves.md#old)."),
        ("guide/start.rst", "Starting\n========\n\nBefore the zeppelin rises, see ../parts/valves.md for more."),
        ("guide/start.html", "<title>Starting</title><p>Before the zeppelin rises, see <a href='../parts/valves.md'>this</a>.</p>"),
    ],
)
async def test_links_between_files_are_followed(name: str, text: str, tmp_path: Path) -> None:
    files = {name: text, "parts/valves.md": "# Gas\n\nHydrogen escapes here.", **{f"p{n}.md": f"# P{n}\n\nOther {n}." for n in range(9)}}
    library = await _library(tmp_path / "manual", files)
    found = await _titles(library, "What happens before the zeppelin rises?", 2)
    await library.aclose()
    assert found == ["Starting", "Gas"]


async def test_headings_speak_for_what_is_below_them_and_are_linked_to(tmp_path: Path) -> None:
    filler = "\n\n".join(f"Paragraph {n} tells of something else at some length, and then of nothing in particular. " * 6 for n in range(4))
    handbook = f"# Handbook\n\n{filler}\n\n## Ballast\n\n{filler}\n\n## Mooring mast\n\nIt is forty metres high.\n\n{filler}\n\n"
    handbook += "```\n# Hangar\n```\n\n## Landing\n\nLanding a zeppelin ends at the Mooring Mast, with ropes."
    library = await _library(tmp_path / "air", {"handbook.md": handbook, "other.md": f"# Other\n\n{filler}"})
    landing = [passage.text for passage in await library.search("How does landing a zeppelin end?", 2)]
    ballast = await library.search("ballast", 2)
    hangar = await library.search("hangar", 1)
    await library.aclose()
    assert "ends at the Mooring Mast" in landing[0]
    assert "forty metres" in landing[1]
    assert [passage.text.startswith("## Ballast") for passage in ballast] == [True, False]
    assert all(handbook.index("## Ballast") <= passage.start < handbook.index("## Mooring") for passage in ballast)
    assert ["# Hangar" in passage.text for passage in hangar] == [True]


async def test_different_documents_come_before_more_of_the_same(tmp_path: Path) -> None:
    long = "\n\n".join(f"Paragraph {n} on the keel of a ship. " + f"It says something about wood {n}. " * 30 for n in range(6))
    library = await _library(
        tmp_path / "ships", {"long.txt": long, "a.txt": "The keel of a ship is laid first.", "b.txt": "A ship without a keel drifts."}
    )
    found = await library.search("keel of a ship", 6)
    await library.aclose()
    assert len({passage.source.uri for passage in found[:3]}) == 3
    assert len(found) == 6
    assert [passage.score for passage in found] == sorted((passage.score for passage in found), reverse=True)


async def test_passages_are_pieces_of_the_text_at_their_offsets(tmp_path: Path) -> None:
    sentence = "Ein Satz über Flüsse, der etwas länger ist, als er sein müsste 🌊. "
    files = {
        "a.md": "\n\n# Top\n\n" + "\n\n".join(sentence * n for n in range(1, 40)),
        "b.txt": "x" * 5000,
        "c.csv": "\n".join(f"{n},{n * n},some words" for n in range(900)),
    }
    library = await _library(tmp_path / "texts", files)
    for query in ("Satz über Flüsse", "some words", "x" * 1200):
        for passage in await library.search(query, 50):
            text = await library.text(passage.source.uri) or ""
            assert (
                passage.text
                == text[passage.start : passage.end]
                == files[passage.source.uri.rpartition("/")[2]][passage.start : passage.end]
            )
            assert 0 < len(passage.text) <= LONGEST
            assert await library.passage(passage.id) == Passage(passage.id, passage.source, passage.text, passage.start, passage.end)
            around = await library.context(passage.id, 3000)
            assert around is not None
            assert around.text == text[around.start : around.end]
            assert around.start <= passage.start < passage.end <= around.end
            assert len(around.text) <= 3000
    unknown = [
        await library.passage(name) for name in ("d1", "d999.1", "d1.999", "x1.1", "", "d-1.1", "d1.0", "d١.1", "d" + "9" * 40 + ".1")
    ]
    gone = (await library.context("d999.1"), await library.text("elsewhere"), await library.source("elsewhere"))
    await library.aclose()
    assert unknown == [None] * 9
    assert gone == (None, None, None)


@pytest.mark.parametrize(
    "text", ["", " \n ", "word", "a b. " * 2000, "é" * 3000, "line\n" * 3000, "A. B. C.\n\n\n\nD", "“Quoted.” Next one. " * 200]
)
def test_splitting_loses_nothing_but_space(text: str) -> None:
    spans = split(text)
    inside = "".join(text[start:end] for start, end in spans)
    assert "".join(inside.split()) == "".join(text.split())
    assert all(0 < end - start <= LONGEST and text[start:end] == text[start:end].strip() for start, end in spans)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


@pytest.mark.parametrize(
    "query",
    ["'", '"', 'a" OR "b', "NEAR(a b)", "title:x AND body:y", "-x ^y *", "(", "\0", "river\0",
     "\ud800", "🌊", "", " ", "the of and", "x" * 100_000, "? " * 9000],
    ids=range(16),
)  # fmt: skip
async def test_no_query_is_an_error(query: str, tmp_path: Path) -> None:
    library = await _library(tmp_path / "films", FILMS)
    found = await library.search(query)
    none = (await library.search("river", 0), await library.search("zyzzyva"))
    await library.aclose()
    assert len(found) <= 8
    assert none == ([], [])


async def test_words_are_found_whatever_their_form(tmp_path: Path) -> None:
    files = {
        "a.txt": "Die Straße führt über den Fluß.",
        "b.txt": "Limited depth of resumes.",
        "c.txt": "東京都は日本の首都です。",
        "d.txt": "Ελλάδα και Ναΐφ.",
    }
    library = await _library(tmp_path / "words", files)
    asked = ["STRASSE FUHRT", "fuhrt uber", "what limits resuming", "日本の首都", "ελλαδα"]
    found = [[passage.source.uri.rpartition("/")[2] for passage in await library.search(query, 1)] for query in asked]
    await library.aclose()
    assert found == [["a.txt"], ["a.txt"], ["b.txt"], ["c.txt"], ["d.txt"]]


async def test_a_page_added_in_a_run_is_searched_linked_and_kept_as_it_was(tmp_path: Path) -> None:
    library = await _library(tmp_path / "films", FILMS)
    before = library.passages
    text = "Tisza flood\n\nThe flood of Szeged in 1879 was described by Anselm Korda in a broadcast."
    (added,) = library.add("https://example.org/flood", "Tisza flood", text, "ab" * 32)
    same = library.add("https://example.org/flood", "Tisza flood", text, "ab" * 32)
    source = Source(uri="https://example.org/flood", title="Tisza flood", sha256="ab" * 32)
    assert added == Passage("p1.1", source, text, 0, len(text))
    assert same == [added]
    assert (await library.search("flood described in a broadcast", 1))[0].source == source
    assert "Tisza flood" in await _titles(library, "Where was Anselm Korda from?", 4)
    assert (await library.text(source.uri), await library.source(source.uri), await library.passage("p1.1")) == (text, source, added)
    assert (await library.current_sha256(source.uri), await library.where([(source.uri, 14)])) == ("ab" * 32, ["line 3"])
    (newer,) = library.add("https://example.org/flood", "Tisza flood", "All dry again in the broadcast.", "cd" * 32)
    assert (newer, library.passages) == (added, before + 1)
    await library.aclose()
    again = await open_library([str(tmp_path / "films")])
    assert await again.text("https://example.org/flood") is None
    await again.aclose()


def test_names_are_runs_of_capitalised_words() -> None:
    text = "Yesterday E. B. White met the Duke of York, Ana de Armas and McGee. Nobody knew. In 1999 Bon Jovi played."
    assert [" ".join(mention.phrase) for mention in analyse(text).names] == [
        "yesterdai e b white", "duke of york", "ana de arma and mcgee", "1999 bon jovi",
    ]  # fmt: skip


FAMILIES = """
limits limited limiting caresses ponies ties cats agreed feed plastered motoring conflated troubling sized hopping falling hissing
relational conditional rationally vietnamization predication operator feudalism decisiveness hopefulness formaliti sensibiliti
triplicate formative electrical goodness revival allowance inference airliner adjustable defensible irritant replacement adoption
homologous communism activate angulariti effective bowdlerize probate rate cease controll roll happy sky yes yearly by
generalizations oscillators am ox
"""


def test_stems_are_those_of_sqlite() -> None:
    documented = f"{sqlite3.__doc__} {open_library.__doc__} {str.__doc__} {dict.__doc__} {int.__doc__} {bytes.__doc__}"
    words = sorted({word.strip(".,;()'\"").lower() for word in f"{FAMILIES} {documented}".split()})
    words = [word for word in words if word.isascii() and word.isalpha()]
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE VIRTUAL TABLE t USING fts5(word, tokenize='porter ascii')")
    connection.execute("CREATE VIRTUAL TABLE v USING fts5vocab(t, instance)")
    connection.executemany("INSERT INTO t(rowid, word) VALUES(?, ?)", list(enumerate(words)))
    theirs = {words[row]: term for row, term in connection.execute("SELECT doc, term FROM v")}
    connection.close()
    assert {word: stem(word) for word in words} == theirs
    assert terms("The Éclairs, 2 of them") == ["the", "eclair", "2", "of", "them"]
