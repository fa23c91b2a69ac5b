import operator
import typing
from dataclasses import dataclass, field
from typing import Annotated, Any, NotRequired, TypedDict

import pytest
import typing_extensions
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.graph import END, START, MessagesState, StateGraph, add_messages
from langgraph.managed import RemainingSteps
from pydantic import BaseModel, Field, field_validator
from pydantic_core import PydanticUndefined

from orchestrator.errors import InputError
from orchestrator.workflow import Workflow


class State(TypedDict):
    text: str


def graph_of(state: Any, **schemas: Any) -> Workflow:
    async def step(state: Any) -> dict[str, Any]:
        return {}

    return Workflow(StateGraph(state, **schemas).add_node("step", step).add_edge(START, "step"), name="w")


def input_error(workflow: Workflow, **values: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        workflow.validate_input(values)
    return caught.value.lines()


def fields(workflow: Workflow) -> dict[str, tuple[Any, bool, Any, str | None]]:
    found = workflow.input_model.model_fields
    return {
        key: (info.annotation, info.is_required(), info.get_default(call_default_factory=True, validated_data={}), info.description)
        for key, info in found.items()
    }


class Nested(BaseModel):
    kind: str
    size: int = 1


class Typed(TypedDict):
    question: Annotated[str, Field(description="what to find out", min_length=3)]
    count: Annotated[int, Field(ge=1)]
    verbose: bool
    tags: list[str]
    nested: NotRequired[Nested]
    limit: Annotated[int, Field(default=5)]
    left: RemainingSteps


class TypedInput(TypedDict):
    question: Annotated[str, Field(description="what to find out", min_length=3)]
    count: Annotated[int, Field(ge=1)]
    verbose: bool
    tags: list[str]
    nested: NotRequired[Nested]
    limit: Annotated[int, Field(default=5)]


def test_the_texts_of_a_command_line_become_what_the_fields_say() -> None:
    workflow = graph_of(Typed, input_schema=TypedInput)
    values = {"question": "why?", "count": "3", "verbose": "yes", "tags": ["a", "b"], "nested": '{"kind": "x"}'}
    assert workflow.validate_input(values) == {
        "question": "why?",
        "count": 3,
        "verbose": True,
        "tags": ["a", "b"],
        "nested": Nested(kind="x"),
        "limit": 5,
    }
    assert workflow.validate_input({**values, "tags": '["a"]', "limit": "7"})["tags"] == ["a"]


def test_descriptions_and_defaults_are_kept_and_managed_values_left_out() -> None:
    assert fields(graph_of(Typed, input_schema=TypedInput)) == {
        "question": (str, True, PydanticUndefined, "what to find out"),
        "count": (int, True, PydanticUndefined, None),
        "verbose": (bool, True, PydanticUndefined, None),
        "tags": (list[str], True, PydanticUndefined, None),
        "nested": (Nested, False, None, None),
        "limit": (int, False, 5, None),
    }
    assert "left" not in graph_of(Typed).input_model.model_fields


def test_every_wrong_field_is_named_with_its_path() -> None:
    workflow = graph_of(Typed, input_schema=TypedInput)
    assert input_error(workflow, questoin="why?", count=0, verbose="maybe", tags="a", nested={"kind": "x", "size": "big"}) == [
        "'question' is missing; 'count': input should be greater than or equal to 1, got 0; "
        "'verbose': input should be a valid boolean, unable to interpret input, got 'maybe'; "
        "'tags': input should be a valid list, got 'a'; "
        "'nested.size': input should be a valid integer, unable to parse string as an integer, got 'big'; and 1 more",
        "In the input of workflow 'w'",
        "Give 'question': what to find out; Give another 'count'; Give another 'verbose'; Give another 'tags'; Give another 'nested'",
    ]


def test_a_field_too_many_gets_the_nearest_name() -> None:
    assert input_error(graph_of(State), txt="a", text="b")[0::2] == ["'txt' is no field of the input", "Did you mean 'text'?"]
    assert input_error(graph_of(State), other="a", text="b")[0::2] == ["'other' is no field of the input", "The fields are: text"]


def test_a_value_is_echoed_short_and_printable() -> None:
    assert input_error(graph_of(Typed, input_schema=TypedInput), question="why?", count="\x1b[31m" + "9x" * 500, verbose=1, tags=[])[0] == (
        "'count': input should be a valid integer, unable to parse string as an integer, got '\\x1b[31m" + "9x" * 35 + "…"
    )


def test_a_pydantic_input_keeps_its_validators_and_defaults() -> None:
    class Input(BaseModel):
        text: str = Field(description="a text")
        parts: list[str] = ["all"]
        stamp: list[int] = Field(default_factory=lambda: [1, 2])
        note: str | None = None

        @field_validator("text")
        @classmethod
        def _not_blank(cls, text: str) -> str:
            if not text.strip():
                raise ValueError("it is blank")
            return text.strip()

    workflow = graph_of(State, input_schema=Input)
    assert workflow.validate_input({"text": " a "}) == {"text": "a", "parts": ["all"], "stamp": [1, 2]}
    assert input_error(workflow, text=" ")[0] == "'text': it is blank, got ' '"
    assert input_error(workflow, text="a", part="b")[2] == "Did you mean 'parts'?"
    assert workflow.text_field == "text"
    assert Input.model_validate({"text": "a", "extra": "the user's own class is not changed"}).text == "a"


def test_a_dataclass_input_is_read_with_its_defaults() -> None:
    @dataclass
    class Input:
        text: str
        depth: int = 2
        tags: list[str] = field(default_factory=list)

    workflow = graph_of(Input)
    assert workflow.validate_input({"text": "a", "depth": "4"}) == {"text": "a", "depth": 4, "tags": []}
    assert input_error(workflow)[0] == "'text' is missing"


def test_a_single_state_asks_only_for_what_no_node_fills() -> None:
    class Single(TypedDict):
        question: str
        hints: NotRequired[str]
        answer: str
        steps: Annotated[list[str], operator.add]

    async def answer(state: Single) -> dict[str, Any]:
        return {"answer": state["question"], "steps": ["answer"]}

    workflow = Workflow(StateGraph(Single).add_node("answer", answer).add_edge(START, "answer"))
    assert {key: info.is_required() for key, info in workflow.input_model.model_fields.items()} == {
        "question": True,
        "hints": False,
        "answer": False,
        "steps": False,
    }
    assert workflow.validate_input({"question": "why?"}) == {"question": "why?"}


def test_a_model_as_the_single_state_asks_for_every_field_that_it_requires_itself() -> None:
    class Single(BaseModel):
        question: str
        answer: str
        note: str = "none"
        steps: Annotated[list[str], operator.add]

    async def answer(state: Single) -> dict[str, Any]:
        return {"answer": state.question, "steps": ["answer"]}

    workflow = Workflow(StateGraph(Single).add_node("answer", answer).add_edge(START, "answer"))
    assert input_error(workflow, question="why?")[0] == "'answer' is missing"
    assert workflow.validate_input({"question": "why?", "answer": ""}) == {"question": "why?", "answer": "", "note": "none"}


def test_a_state_of_total_false_asks_for_nothing() -> None:
    class Loose(TypedDict, total=False):
        question: str
        depth: int

    assert graph_of(Loose).validate_input({}) == {}
    assert graph_of(Loose).validate_input({"depth": "1"}) == {"depth": 1}


def test_the_text_field_is_the_first_required_text_then_a_required_list_then_any_text_then_the_messages() -> None:
    class Both(TypedDict):
        number: int
        style: NotRequired[str]
        question: str

    class Optional(TypedDict):
        number: int
        note: NotRequired[str | None]

    class Listed(TypedDict):
        note: NotRequired[str]
        sizes: list[int]
        names: list[str]

    class Numbers(TypedDict):
        number: int

    found = [graph_of(schema, input_schema=schema).text_field for schema in (Both, Listed, Optional, Numbers, MessagesState)]
    assert found == ["question", "names", "note", None, "messages"]


def test_messages_are_given_as_a_text_or_as_a_list() -> None:
    class Chat(TypedDict):
        messages: Annotated[list[AnyMessage], add_messages]

    workflow = graph_of(Chat)
    assert workflow.validate_input({"messages": "hello"}) == {"messages": [HumanMessage("hello")]}
    assert workflow.validate_input({"messages": [{"role": "user", "content": "a"}, ["ai", "b"]]}) == {
        "messages": [HumanMessage("a"), AIMessage("b")]
    }
    assert "messages" in input_error(workflow, messages=[{"role": "nobody", "content": "a"}])[0]


def test_an_agent_of_langchain_takes_a_bare_text() -> None:
    from langchain.agents import create_agent
    from langchain_core.language_models import FakeListChatModel

    workflow = Workflow(create_agent(FakeListChatModel(responses=["x"]), []))
    assert workflow.text_field == "messages"
    assert workflow.validate_input({"messages": "hello"}) == {"messages": [HumanMessage("hello")]}


def test_a_model_is_an_input_too() -> None:
    workflow = graph_of(Typed, input_schema=TypedInput)
    given = workflow.input_model(question="why?", count=1, verbose=False, tags=[])
    assert workflow.validate_input(given) == {"question": "why?", "count": 1, "verbose": False, "tags": [], "limit": 5}


def test_a_state_without_fields_is_refused() -> None:
    async def grow(state: Any) -> list[str]:
        return ["x"]

    root: Any = Annotated[list[str], operator.add]
    workflow = Workflow(StateGraph(root).add_node("grow", grow).add_edge(START, "grow"), name="w")
    assert input_error(workflow) == [
        "Workflow 'w' takes one value without a name",
        "Give its graph a state with named fields: a TypedDict, a dataclass or a pydantic model",
    ]


def test_both_kinds_of_typed_dict_ask_for_what_the_first_node_reads_and_no_more() -> None:
    for make in (typing.TypedDict, typing_extensions.TypedDict):
        state = make("State", {"name": str, "greeting": str})  # type: ignore[operator]  # a schema made at run time

        async def greet(state: dict[str, str]) -> dict[str, str]:
            return {"greeting": f"Hello {state['name']}!"}

        graph = StateGraph(state).add_node("greet", greet).add_edge(START, "greet").add_edge("greet", END)
        fields = Workflow(graph).input_model.model_fields
        assert {name: field.is_required() for name, field in fields.items()} == {"name": True, "greeting": False}


class Item(TypedDict):
    name: str
    size: NotRequired[int]


async def test_a_typed_dict_within_the_state_is_read_on_every_python() -> None:
    class Shelf(TypedDict):
        items: Annotated[list[Item], operator.add]
        best: Item | None

    async def pick(state: Shelf) -> dict[str, Any]:
        return {"best": state["items"][0]}

    graph = StateGraph(Shelf).add_node("pick", pick).add_edge(START, "pick").add_edge("pick", END)
    values = Workflow(graph, name="shelf").validate_input({"items": [{"name": "a", "size": "3"}]})
    assert values["items"] == [{"name": "a", "size": 3}]
    assert input_error(Workflow(graph, name="shelf"), items=[{"size": 3}])[0].startswith("'items.0.name'")
