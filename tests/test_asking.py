"""Questions to a person: their ids and names, what an answer may be, and what a run keeps of it."""

import json
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, TypeAdapter
from typing_extensions import TypedDict

from orchestrator.asking import (
    Question,
    accepted,
    allows,
    carried,
    find,
    given_to,
    lines,
    names,
    plan_question,
    question,
    question_of,
    read_answers,
    still_open,
    tools_question,
    validate,
)
from orchestrator.controls import Controls
from orchestrator.errors import InputError
from orchestrator.forecast import forecast
from orchestrator.limits import add_controls, environment_controls, option_controls
from orchestrator.options import Parser, parse
from orchestrator.schemas import misfit
from orchestrator.workflow import load_workflow

PLAN = plan_question(["Who?", "When?"], number=1)
CLARIFY = question("clarify", "Which Paris?", choices=("Paris, France", "Paris, Texas"))
SEND: tuple[str, dict[str, Any]] = ("send_mail", {"to": "ada@example.org"})


def custom(schema: dict[str, Any] | None = None) -> Question:
    return question_of("0" * 32, "How old are you?", schema)


def refused(asked: Question, answer: object) -> str:
    with pytest.raises(InputError) as caught:
        validate(asked, answer)
    return str(caught.value)


def test_the_same_question_has_the_same_id_in_every_process() -> None:
    assert PLAN.id == "6b33f0ff70dea3ba19823bee6667658c"
    assert names([PLAN]) == {PLAN.id: f"q-{PLAN.id[:4]}"}


@pytest.mark.parametrize(
    "other",
    [
        plan_question(["Who?", "Where?"], number=1),
        plan_question(["Who?", "When?"], number=2),
        question("plan", PLAN.text, detail=["Who?", "When?"], choices=("yes", "no"), branch="t1"),
        question("custom", PLAN.text, detail=["Who?", "When?"], choices=("yes", "no")),
    ],
    ids=["another plan", "another round", "another branch", "another kind"],
)
def test_whatever_is_asked_else_is_another_question(other: Question) -> None:
    assert other.id != PLAN.id


def test_what_is_cut_of_a_long_argument_still_makes_another_question() -> None:
    same = "x" * 5_000
    one, two = (tools_question([("write", {"text": same + end})], branch="t1") for end in ("good", "evil"))
    assert one.id != two.id
    assert one.detail == two.detail == [{"tool": "write", "arguments": {"text": "x" * 1_000 + "… (4,004 more characters)"}}]


def test_names_are_as_long_as_tells_them_apart() -> None:
    asked = [Question(id=id, kind="custom", text="?") for id in ("3f2a" + "0" * 28, "3f2a1" + "0" * 27, "9b00" + "0" * 28)]
    assert list(names(asked).values()) == ["q-3f2a0", "q-3f2a1", "q-9b000"]
    assert [find(asked, name) for name in ("q-9b00", "Q-9B00", "9b00", "q-3f2a1", asked[0].id)] == [
        asked[2],
        asked[2],
        asked[2],
        asked[1],
        asked[0],
    ]
    for name, says in (("q-3f2a", "is the name of more than one"), ("q-0000", "is pending"), ("q-3", "is pending"), ("", "is pending")):
        with pytest.raises(InputError, match=says) as caught:
            find(asked, name)
        assert caught.value.where == "pending: q-3f2a0, q-3f2a1, q-9b000"


@pytest.mark.parametrize(
    ("asked", "answer", "value"),
    [
        (PLAN, "yes", "yes"),
        (PLAN, " Y ", "yes"),
        (PLAN, "No.", "no"),
        (PLAN, True, "yes"),
        (PLAN, '["Who was she?", " Where\\n? ", "Who was she?"]', ["Who was she?", "Where ?"]),
        (PLAN, "Who was she?\n\nWhere?", ["Who was she?", "Where?"]),
        (PLAN, ["Who was she?"], ["Who was she?"]),
        (tools_question([SEND], branch=None), "a", "always"),
        (tools_question([SEND], branch=None), "n", "no"),
        (CLARIFY, "2", "Paris, Texas"),
        (CLARIFY, "paris, france", "Paris, France"),
        (CLARIFY, "3", "3"),
        (CLARIFY, "the one in Ontario", "the one in Ontario"),
        (custom(), "37", 37),
        (custom(), "old enough", "old enough"),
        (custom(), '{"years": 37}', {"years": 37}),
        (custom(), "false", False),
        (custom({"type": "string"}), "37", "37"),
    ],
)
def test_answers(asked: Question, answer: object, value: object) -> None:
    assert validate(asked, answer) == value


@pytest.mark.parametrize(
    ("asked", "answer", "why"),
    [
        (PLAN, "yess", "that is neither yes nor no nor a list of questions"),
        (PLAN, "", "the answer is empty"),
        (PLAN, "[1]", "neither yes nor no nor a list"),
        (PLAN, '["Who?"', "the list is not valid JSON"),
        (PLAN, "[]", "the list holds no question"),
        (PLAN, json.dumps([f"Question {number}?" for number in range(201)]), "the list holds more than 200 questions"),
        (tools_question([SEND], branch=None), "sure", "neither yes nor no nor always"),
        (tools_question([SEND], branch=None), ["yes"], "neither yes nor no nor always"),
        (CLARIFY, "   ", "the answer is empty"),
        (CLARIFY, "x" * 20_001, "longer than 20,000 characters"),
        (CLARIFY, {"a": 1}, "the answer is an object"),
        (custom({"type": "integer"}), "old enough", "the answer must be integer, not 'old enough'"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused_with_what_would(asked: Question, answer: object, why: str) -> None:
    told = refused(asked, answer)
    assert f"question {names([asked])[asked.id]} cannot be answered so" in told
    assert why in told
    assert f"it asks: {asked.text}" in told
    assert "answer with " in told


def test_a_bare_answer_is_for_the_one_question_that_is_pending() -> None:
    assert read_answers([CLARIFY], ["Paris=France"]) == {CLARIFY.id: "Paris=France"}
    with pytest.raises(InputError) as caught:
        read_answers([CLARIFY, PLAN], ["yes"])
    assert str(caught.value) == (
        "2 questions are pending, and the answer does not say which it is for. "
        f"q-{CLARIFY.id[:4]}: Which Paris?; q-{PLAN.id[:4]}: Research 2 questions? write --answer NAME=TEXT, once for each"
    )


def test_answers_by_name_are_all_checked_before_any_counts() -> None:
    asked = [CLARIFY, PLAN]
    assert read_answers(asked, [f"q-{PLAN.id[:4]}=yes", f"{CLARIFY.id}=2"]) == {PLAN.id: "yes", CLARIFY.id: "Paris, Texas"}
    for given, why in (
        ([f"q-{PLAN.id[:4]}=yes", "q-0000=no"], "no question 'q-0000' is pending"),
        ([f"q-{PLAN.id[:4]}=yes", f"q-{PLAN.id[:6]}=no"], "is answered twice"),
        ([f"q-{CLARIFY.id[:4]}=2", f"q-{PLAN.id[:4]}=perhaps"], "cannot be answered so"),
    ):
        with pytest.raises(InputError, match=why):
            read_answers(asked, given)
    with pytest.raises(InputError, match="the run asks nothing"):
        read_answers([], ["yes"])
    with pytest.raises(InputError, match="no question 'q-wrong' is pending"):  # though every text would be an answer to what is
        read_answers([CLARIFY], ["q-wrong=yes"])


def test_what_a_graph_asks_is_told_once() -> None:
    asked = question_of("a" * 32, {"question": "Which number?", "most": 3})
    assert lines(asked, "q-aaaa") == ["q-aaaa: Which number?", "  {", '    "most": 3', "  }"]
    assert lines(question_of("a" * 32, {"question": "Which number?"}), "q-aaaa") == ["q-aaaa: Which number?"]


def test_always_allows_a_tool_for_good_and_answers_what_is_pending_of_it() -> None:
    two = tools_question([SEND, ("delete", {"path": "/"})], branch="t2")
    kept = accepted(tools_question([SEND], branch="t1"), "always")
    assert (allows(kept, "send_mail"), allows(kept, "delete")) == (True, False)
    assert still_open([tools_question([SEND], branch="t3"), two, PLAN], kept) == [two, PLAN]


def test_a_plan_that_was_declined_is_asked_again_when_the_run_is_resumed() -> None:
    kept = accepted(PLAN, "no")
    assert given_to(PLAN, kept) == "no"
    assert carried({**kept, "other": "yes"}) == {"other": "yes"}
    assert given_to(PLAN, carried(kept)) is None


def test_the_value_of_an_interrupt_is_shown_as_it_is() -> None:
    asked = question_of("ab" * 16, {"question": "Delete it?", "file": "x.txt", "at": {1}})
    assert (asked.kind, asked.text, asked.native) == ("custom", "Delete it?", True)
    assert asked.detail == {"question": "Delete it?", "file": "x.txt", "at": "{1}"}
    assert question_of("ab" * 16, [1, 2]).text == "the graph waits for an answer"
    assert question_of(PLAN.id, PLAN.model_dump(mode="json")) == PLAN
    assert question_of("cd" * 16, PLAN.model_dump(mode="json")).native  # ours under another id is not ours


def test_what_a_question_shows_obeys_nobody() -> None:
    evil = "\x1b]52;c;aGk=\x07good\x1b[2J\u202etxt.exe\r"
    shown = [
        *lines(question("clarify", evil, choices=(evil,)), "q-0000"),
        *lines(plan_question([evil], number=1), "q-0000"),
        *lines(tools_question([(evil, {evil: evil, "more": [evil]})], branch=evil), "q-0000"),
        *lines(question_of("0" * 32, {"text": evil, "x": evil}), "q-0000"),
    ]
    assert all(line.isprintable() for line in shown), shown


def test_a_question_as_it_is_read() -> None:
    asked = tools_question([("fetch_url", {"url": "https://example.org/"}), ("note", {"tags": ["a"]})], branch="t2")
    assert lines(asked, "q-3f2a") == [
        "q-3f2a (t2): Make these 2 tool calls?",
        "  fetch_url",
        "    url: https://example.org/",
        "  note",
        '    tags: ["a"]',
    ]
    assert lines(CLARIFY, "q-1") == ["q-1: Which Paris?", "  1. Paris, France", "  2. Paris, Texas"]
    assert lines(PLAN, "q-2") == ["q-2: Research 2 questions?", "  1. Who?", "  2. When?"]


def test_what_waits_for_a_yes_is_an_option_and_a_variable() -> None:
    parser = Parser("run")
    add_controls(parser)
    found, _ = parse(parser, ["--approve", "plan", "--approve", "tools", "--ask", "always"])
    assert option_controls(found) == {"approve": ("plan", "tools"), "ask": "always"}
    assert environment_controls({"ORCHESTRATOR_APPROVE": "tools,plan"}) == ({"approve": ("tools", "plan")}, [])
    for words, says in (
        (["--approve", "plna"], "--approve is any of plan, tools with commas between them, or none, not 'plna'. did you mean plan?"),
        (["--ask", "sometimes"], "--ask is never or auto or always, not 'sometimes'. give one of these, or leave the option out"),
    ):
        found, _ = parse(parser, words)
        with pytest.raises(InputError) as caught:
            option_controls(found)
        assert str(caught.value) == says


def test_a_forecast_counts_the_question_to_the_user() -> None:
    research = load_workflow("research")
    never, auto = (forecast(research, Controls(ask=ask, max_branches=1), {"": "offline"}).calls for ask in ("never", "auto"))
    assert auto > never


class Address(BaseModel):
    street: str = Field(min_length=2)


class Decision(BaseModel):
    approved: bool
    level: Literal["low", "high"] = "low"
    note: str | None = None
    marks: list[int] = Field(default=[], max_length=2)
    share: float = Field(default=0.5, gt=0, le=1)
    address: Address | None = None


class Plain(TypedDict):
    name: str


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"approved": True}, ""),
        ({"approved": True, "level": "high", "note": None, "marks": [1, 2], "share": 1, "address": {"street": "High St"}}, ""),
        ({}, "the answer lacks 'approved'"),
        ([], "the answer must be object, not []"),
        ({"approved": "yes"}, "the answer.approved must be boolean, not 'yes'"),
        ({"approved": True, "level": "mid"}, "the answer.level must be one of 'low', 'high', not 'mid'"),
        ({"approved": True, "marks": [1, "2"]}, "the answer.marks[1] must be integer, not '2'"),
        ({"approved": True, "marks": [1, 2, 3]}, "the answer.marks must have at most 2 items"),
        ({"approved": True, "share": 0}, "the answer.share must be more than 0, not 0"),
        ({"approved": True, "share": True}, "the answer.share must be number, not True"),
        ({"approved": True, "address": {"street": "x"}}, "at least 2 characters"),
    ],
)
def test_an_answer_fits_the_schema_of_a_model(value: object, why: str) -> None:
    told = misfit(value, Decision.model_json_schema())
    assert (why in told) if why else told == ""


def test_an_answer_fits_the_schema_of_a_typed_dict() -> None:
    schema = TypeAdapter(Plain).json_schema()
    assert misfit({"name": "x"}, schema) == ""
    assert misfit({"name": 1}, schema) == "the answer.name must be string, not 1"
    assert misfit({"x": 1}, {"properties": {"a": True}, "additionalProperties": False}).startswith("the answer has no field 'x'")


def test_a_schema_that_holds_itself_ends() -> None:
    assert misfit(1, {"$ref": "#"}) == "the answer is not allowed"
