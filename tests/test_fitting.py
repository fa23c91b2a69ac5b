"""What fits into a prompt: pieces of texts, groups of results, and the room that a model has."""

import random

import pytest

from orchestrator.context import RunContext
from orchestrator.errors import InputError
from orchestrator.graphs.fitting import LEAST, cut_to, grouped, pieces, prompt_room, tokens_in
from orchestrator.models.offline import OfflineModel


@pytest.mark.parametrize(
    "text", ["word " * 5_000, "One line.\n" * 3_000, "灯台は千八百二十七年に建てられた。" * 900, "x" * 9_999, "a\ud800é" * 3_000]
)
def test_pieces_are_the_text_and_none_is_too_long(text: str) -> None:
    found = [*pieces(text, 500)]
    assert "".join(found) == text
    assert len(found) > 1
    assert all(tokens_in(piece) <= 500 for piece in found)


def test_a_text_is_divided_where_it_has_a_break() -> None:
    text = "\n\n".join(f"Paragraph {number}. It has two sentences." for number in range(200))
    assert all(piece.startswith("Paragraph") for piece in pieces(text, 100))
    words = [*pieces("word " * 500, 100)]
    assert all(piece.endswith(" ") for piece in words)


def test_a_short_text_is_one_piece_and_is_not_cut() -> None:
    assert [*pieces("Short.", 100)] == ["Short."]
    assert [*pieces("", 100)] == []
    assert cut_to("Short.", 100) == "Short."
    assert tokens_in(cut_to("word " * 1_000, 100)) <= 100


def test_groups_fit_and_there_are_at_most_half_as_many() -> None:
    chance = random.Random(7)  # noqa: S311 - no secret
    for _ in range(300):
        room = chance.randint(20, 2_000)
        sizes = [chance.randint(1, room // 2) for _ in range(chance.randint(1, 60))]
        groups = grouped(sizes, room)
        assert [place for group in groups for place in group] == [*range(len(sizes))]
        assert all(sum(sizes[place] for place in group) <= room for group in groups)
        assert len(groups) <= -(-len(sizes) // 2)


def test_what_fits_into_one_group_is_one_group() -> None:
    assert grouped([10] * 10, 100) == [range(10)]
    assert [len(group) for group in grouped([10] * 12, 100)] == [7, 5]


async def test_the_room_is_what_was_given_else_what_is_known_of_the_model() -> None:
    told = RunContext(
        models={"": OfflineModel(profile={"max_input_tokens": 100_000}), "small": OfflineModel(profile={"max_input_tokens": 20_000})}
    )
    unknown = RunContext(models={"": OfflineModel()})
    assert await prompt_room(told, "one") == 100_000 - 4_000 - 600
    assert await prompt_room(told, "one", "small", taken=100) == 20_000 - 4_000 - 600 - 100
    assert await prompt_room(unknown, "one") == 8_000 - 2_000 - 600
    assert await prompt_room(told, "one", context_tokens=4_000) == 4_000 - 1_000 - 600


async def test_a_context_without_room_for_a_text_is_refused() -> None:
    context = RunContext(models={"": OfflineModel()})
    with pytest.raises(InputError, match="a context of 1,000 tokens leaves no room"):
        await prompt_room(context, "one", context_tokens=1_000)
    assert await prompt_room(context, "one", context_tokens=1_200) >= LEAST
