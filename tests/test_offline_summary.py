"""The offline model's summary: word for word, and a sentiment only where words judge."""

import pytest

from orchestrator.models.offline_prompt import Block, Prompt
from orchestrator.models.offline_summary import summary

TEXT = """# Arkona

The lighthouse of Arkona was built in 1827. It stands on the cape of Arkona, in the north of the island of Ruegen.
The lighthouse was built of brick by the architect Schinkel.
Ships had stranded on the cape for centuries before the lighthouse was built.
My neighbour sells apples and pears on Tuesdays.
"""


def of(text: str, focus: str = "") -> dict[str, object]:
    return summary(Prompt(texts=(Block(text),), focus=focus))


def test_a_summary_is_made_of_sentences_of_the_text() -> None:
    found = of(TEXT)
    assert str(found["summary"]).startswith("The lighthouse of Arkona was built in 1827.")
    assert "apples" not in str(found["summary"])
    points = found["key_points"]
    assert isinstance(points, list)
    assert all(point in TEXT for point in points)
    assert len(points) == 3
    assert of(TEXT) == found


def test_a_focus_leaves_out_what_is_not_about_it() -> None:
    assert of(TEXT, "Who was the architect?") == {
        "summary": "The lighthouse was built of brick by the architect Schinkel.",
        "sentiment": "neutral",
        "key_points": [],
    }
    assert of(TEXT, "Nothing of the sort") == of(TEXT)


@pytest.mark.parametrize(
    ("text", "sentiment"),
    [
        ("The room was wonderful and the staff friendly. We recommend it.", "positive"),
        ("The food was terrible. A horrible evening, and a rude waiter.", "negative"),
        ("The room was wonderful, the food terrible.", "mixed"),
        ("The waiter was not friendly.", "negative"),
        ("An error ends the run as failed. The loss is reported.", "neutral"),
        ("The lighthouse was built in 1827.", "neutral"),
        ("A great deal. " + "The lighthouse was built in 1827. " * 100, "neutral"),
    ],
)
def test_the_sentiment_counts_words_that_judge(text: str, sentiment: str) -> None:
    assert of(text)["sentiment"] == sentiment


@pytest.mark.parametrize("text", ["", "   ", "a", "# Title", "| a | b |\n|---|---|", "word " * 5_000, "灯台は千八百二十七年に建てられた。"])
def test_any_text_has_a_summary_or_an_empty_one(text: str) -> None:
    assert set(of(text)) == {"summary", "sentiment", "key_points"}


def test_summaries_are_put_together_by_their_sentences_and_the_sentiment_of_most() -> None:
    blocks = [
        Block(f"Sentiment: {sentiment}\nThe lighthouse of {name} was built long ago.\n- Ships need the lighthouse of {name}.")
        for sentiment, name in (("positive", "Arkona"), ("positive", "Kampen"), ("neutral", "Hiddensee"))
    ]
    found = summary(Prompt(summaries=tuple(blocks)))
    assert found["sentiment"] == "positive"
    assert "The lighthouse of Arkona was built long ago." in found["summary"]
    split = [Block(f"Sentiment: {sentiment}\nOne sentence about {sentiment} things here.") for sentiment in ("positive", "negative")]
    assert summary(Prompt(summaries=tuple(split)))["sentiment"] == "mixed"
