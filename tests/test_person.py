"""A person in the loop: questions, approvals and users' own interrupts, answered in other processes; no model is asked twice."""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from person_made import BOSS, NOTING, command_line, in_this_process, noting, repeated, told_to_model

from orchestrator import Controls, load_workflow, run
from orchestrator.asking import Question, names
from orchestrator.context import RunContext
from orchestrator.resuming import resume
from orchestrator.testing import ModelServer, agents_script, model_server

INPUT = ("research", "What limits a resume?", "--model", "openai:small")
AMBIGUOUS = {"questions": [], "ask": "Which resume?", "choices": ["of a run", "of a person"]}


def researching(documents: Path, *words: str) -> list[str]:
    return [*INPUT, "--documents", str(documents), "--run-id", "r", *words]


def result_of(told: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(told.stdout)
    return found


def pending(told: Any) -> list[str]:
    """The names of the questions of a run, as its last lines have them."""
    return re.findall(r"--answer (q-[0-9a-f]+)=", told.stderr)


def test_a_clarifying_question_is_answered_in_another_process(documents: Path) -> None:
    with model_server(agents_script({"PlanOrQuestion": AMBIGUOUS})) as server:
        first = command_line(documents, *researching(documents, "--ask", "auto", "--json"), server=server)
        (question,) = result_of(first)["questions"]
        assert (first.returncode, result_of(first)["status"], len(server.requests)) == (5, "interrupted", 1)
        assert (question["kind"], question["text"], question["choices"]) == ("clarify", "Which resume?", ["of a run", "of a person"])
        name = f"q-{question['id'][:4]}"
        assert first.stderr.splitlines()[-6:] == [
            f"{name}: Which resume?",
            "  1. of a run",
            "  2. of a person",
            "  takes: one of of a run, of a person, its number, or an answer in your own words",
            f"  answer: python -m orchestrator resume r --answer {name}=ANSWER",
            "resume: python -m orchestrator resume r",
        ]
        second = command_line(documents, "resume", "r", "--answer", "1", "--json", server=server)
    assert (second.returncode, result_of(second)["status"], repeated(server)) == (0, "complete", [])
    asked = [str(request.body["messages"][1]["content"]) for request in server.requests[:2]]
    clarification = "<clarification>\nYou asked: Which resume?\nThe user answered: of a run\n</clarification>"
    assert (clarification in asked[0], clarification in asked[1]) == (False, True)


def test_by_default_nothing_is_asked_and_the_requests_are_as_ever(documents: Path) -> None:
    with model_server(agents_script()) as server:
        told = in_this_process(documents, *researching(documents), server=server)
    assert told.returncode == 0
    assert "You may ask the user" not in json.dumps(server.requests[0].body["messages"][0])
    assert "PlanOrQuestion" not in json.dumps(server.requests[0].body)


def test_the_planner_asks_once_though_it_may_plan_two_rounds(documents: Path) -> None:
    script = agents_script(
        {"PlanOrQuestion": AMBIGUOUS},
        plan=lambda body: {"questions": ["Who?"] if "<open-" not in str(body) else ["When?"]},
        findings={"findings": [], "missing": "nothing"},
    )
    with model_server(script) as server:
        in_this_process(documents, *researching(documents, "--ask", "auto"), server=server)
        in_this_process(documents, "resume", "r", "--answer", "the long one", server=server)
    plans = [str(request.body) for request in server.requests if "You plan research" in str(request.body)]
    assert ["The user answered: the long one" in plan for plan in plans] == [False, True, True]


def test_the_offline_model_asks_only_where_it_always_has_to(documents: Path) -> None:
    words = ("research", "What limits a resume?", "--documents", str(documents), "--model", "offline")
    assert in_this_process(documents, *words, "--ask", "auto").returncode == 0
    first = in_this_process(documents, *words, "--ask", "always", "--run-id", "r")
    assert (first.returncode, len(pending(first))) == (5, 1)
    second = in_this_process(documents, "resume", "r", "--answer", "the journal", "--json")
    assert (second.returncode, result_of(second)["branches"][0]["task"]) == (0, "What limits a resume? the journal")


def test_a_plan_is_approved_days_later_without_another_request(documents: Path) -> None:
    with model_server(agents_script()) as server:
        first = command_line(documents, *researching(documents, "--approve", "plan"), server=server)
        (name,) = pending(first)
        assert (first.returncode, len(server.requests)) == (5, 1)
        assert f"{name}: Research 1 question?\n  1. What limits a resume?\n" in first.stderr
        second = command_line(documents, "resume", "r", "--answer", f"{name}=yes", server=server)
    assert (second.returncode, repeated(server)) == (0, [])


def test_a_plan_is_replaced_by_another_one(documents: Path) -> None:
    with model_server(agents_script()) as server:
        in_this_process(documents, *researching(documents, "--approve", "plan"), server=server)
        told = in_this_process(documents, "resume", "r", "--answer", '["Who designed the journal?", "When?"]', "--json", server=server)
    assert [branch["task"] for branch in result_of(told)["branches"]] == ["Who designed the journal?", "When?"]
    assert repeated(server) == []


def test_a_plan_that_is_declined_ends_the_run_and_is_asked_again_by_resume(documents: Path) -> None:
    with model_server(agents_script()) as server:
        in_this_process(documents, *researching(documents, "--approve", "plan"), server=server)
        declined = in_this_process(documents, "resume", "r", "--answer", "no", "--json", server=server)
        assert (declined.returncode, result_of(declined)["status"]) == (130, "cancelled")
        assert "the plan was declined" in result_of(declined)["error"]
        again = in_this_process(documents, "resume", "r", server=server)
        assert (again.returncode, len(pending(again)), len(server.requests)) == (5, 1, 1)
        assert in_this_process(documents, "resume", "r", "--answer", "yes", server=server).returncode == 0


@pytest.fixture
def folder(tmp_path: Path, documents: Path) -> Path:
    (tmp_path / "noting.py").write_text(NOTING, encoding="utf-8")
    return tmp_path


def start_noting(folder: Path, server: ModelServer, started: Any, *words: str) -> Any:
    options = ("--documents", "papers", "--model", "openai:small", "--run-id", "r", "--approve", "tools")
    return started(folder, "./noting.py", "What limits a resume?", *options, *words, server=server)


def notes(folder: Path) -> list[str]:
    file = folder / "notes.txt"
    return sorted(file.read_text(encoding="utf-8").splitlines()) if file.exists() else []


def test_three_branches_ask_at_once_while_the_fourth_one_ends(folder: Path) -> None:
    with model_server(noting("A?", "B?", "C?", quiet="D?")) as server:
        first = start_noting(folder, server, command_line, "--json")
        asked = result_of(first)["questions"]
        assert (first.returncode, [one["branch"] for one in asked], notes(folder)) == (5, ["t1", "t2", "t3"], [])
        assert asked[0]["detail"] == [{"tool": "file_note", "arguments": {"text": "A? 0"}}]
        assert [branch["task"] for branch in result_of(first)["branches"]] == ["D?"]
        a, b, c = pending(first)
        spent = len(server.requests)
        for words, says in (
            (["yes"], "3 questions are pending, and the answer does not say which it is for"),
            (["q-000000=yes"], "no question 'q-000000' is pending"),
            ([f"{a}=yes", f"{b}=perhaps"], f"question {b} cannot be answered so: that is neither yes nor no nor always"),
        ):
            wrong = in_this_process(folder, "resume", "r", *(part for word in words for part in ("--answer", word)), server=server)
            assert (wrong.returncode, says in wrong.stderr, len(server.requests), notes(folder)) == (2, True, spent, []), wrong.stderr
        part = in_this_process(folder, "resume", "r", "--answer", f"{a}=yes", server=server)
        assert (part.returncode, pending(part), notes(folder)) == (5, [b, c], ["A? 0"])
        last = command_line(folder, "resume", "r", "--answer", f"{b}=no", "--answer", f"{c}=yes", "--json", server=server)
    assert (last.returncode, notes(folder), repeated(server)) == (0, ["A? 0", "C? 0"], [])
    assert [branch["status"] for branch in result_of(last)["branches"]] == ["ok"] * 4
    denied = "Denied by the user: this call was not made, and will not be. Go on without it."
    assert told_to_model(server) == [denied, "filed: A? 0", "filed: C? 0"]


def test_one_question_lists_all_calls_of_a_message_and_always_is_for_the_whole_run(folder: Path) -> None:
    with model_server(noting("A?", "B?", calls=2)) as server:
        first = start_noting(folder, server, in_this_process)
        a, _ = pending(first)
        assert f"{a} (t1): Make these 2 tool calls?\n  file_note\n    text: A? 0\n  file_note\n    text: A? 1\n" in first.stderr
        last = in_this_process(folder, "resume", "r", "--answer", f"{a}=always", server=server)
    assert (last.returncode, notes(folder), repeated(server)) == (0, ["A? 0", "A? 1", "B? 0", "B? 1"], [])


def test_without_approval_of_tools_nothing_is_asked(folder: Path) -> None:
    with model_server(noting("A?")) as server:
        told = start_noting(folder, server, in_this_process, "--approve", "none")
    assert (told.returncode, notes(folder)) == (0, ["A? 0"])


async def test_whoever_calls_python_is_asked_while_the_run_goes_on(documents: Path) -> None:
    asked: list[list[str]] = []

    async def person(questions: Sequence[Question]) -> Mapping[str, Any]:
        asked.append([question.kind for question in questions])
        if len(asked) == 1:
            await asyncio.sleep(3.1)  # longer than the whole deadline: a person's time is no time of the run
        return {question.id: {"clarify": "of a run", "plan": ["Who designed the journal?"]}[question.kind] for question in questions}

    async with model_server(agents_script({"PlanOrQuestion": AMBIGUOUS})) as server:
        result = await run(
            "research",
            {"question": "What limits a resume?", "documents": [str(documents)]},
            model=server.chat_model(),
            controls={"ask": "auto", "approve": ["plan"], "deadline": 3},
            person=person,
        )
    assert (result.status, asked, repeated(server)) == ("complete", [["clarify"], ["plan"]], [])
    assert [branch["task"] for branch in result.branches] == ["Who designed the journal?"]
    assert result.usage["model_calls"] == len(server.requests)


async def test_what_a_person_leaves_is_answered_later(documents: Path) -> None:
    async def nobody(questions: Sequence[Question]) -> Mapping[str, Any]:
        return {}

    async with model_server(agents_script()) as server:
        given = {"question": "What limits a resume?", "documents": [str(documents)]}
        first = await run("research", given, model=server.chat_model(), controls={"approve": ["plan"]}, run_id="r", person=nobody)
        last = await resume("r", model=server.chat_model(), answers={first.questions[0].id: True})
    assert (first.status, last.status, repeated(server)) == ("interrupted", "complete", [])


async def test_a_run_that_is_stopped_waits_for_nobody(documents: Path) -> None:
    stop = asyncio.Event()

    async def never(questions: Sequence[Question]) -> Mapping[str, Any]:
        stop.set()
        await asyncio.sleep(3600)
        return {}

    given = {"question": "What limits a resume?", "documents": [str(documents)]}
    result = await run("research", given, model="offline", controls={"approve": ["plan"]}, person=never, stop=stop)
    assert (result.status, [question.kind for question in result.questions]) == ("interrupted", ["plan"])


OWN = '''
"""A graph of LangGraph's own kind that asks."""

from operator import add
from typing import Annotated, Literal

from pydantic import BaseModel
from typing_extensions import TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt


class State(TypedDict):
    text: str
    said: Annotated[list[str], add]


class Decision(BaseModel):
    level: Literal["low", "high"]


async def age(state: State) -> dict:
    return {"said": [f"age {interrupt({'question': 'How old?', 'of': state['text']})!r}"]}


async def level(state: State) -> dict:
    decision = interrupt("Which level?", response_schema=Decision)
    return {"said": [f"level {decision.level}", interrupt("And why?")]}


graph = StateGraph(State)
graph.add_node("age", age)
graph.add_node("level", level)
for node in ("age", "level"):
    graph.add_edge(START, node)
    graph.add_edge(node, END)
'''


def test_a_graph_of_the_users_own_asks_in_the_same_way(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    first = command_line(tmp_path, "./own.py", "Ada", "--run-id", "r", "--json")
    asked = {question["text"]: question for question in result_of(first)["questions"]}
    assert (first.returncode, sorted(asked), asked["How old?"]["detail"]) == (
        5,
        ["How old?", "Which level?"],
        {"question": "How old?", "of": "Ada"},
    )
    age, level = (f"q-{asked[text]['id'][:4]}" for text in ("How old?", "Which level?"))
    wrong = in_this_process(tmp_path, "resume", "r", "--answer", f"{age}=36", "--answer", f'{level}={{"level": "mid"}}')
    assert (wrong.returncode, "the answer.level must be one of 'low', 'high', not 'mid'" in wrong.stderr) == (2, True)
    second = command_line(tmp_path, "resume", "r", "--answer", f"{age}=36", "--answer", f'{level}={{"level": "low"}}', "--json")
    (question,) = result_of(second)["questions"]
    assert (second.returncode, question["text"]) == (5, "And why?")
    last = in_this_process(tmp_path, "resume", "r", "--answer", "it is enough", "--json")
    assert (last.returncode, sorted(result_of(last)["output"]["said"])) == (0, ["age 36", "it is enough", "level low"])


def test_a_tool_that_interrupts_asks_though_its_agent_has_no_checkpointer(folder: Path) -> None:
    (folder / "noting.py").write_text(BOSS, encoding="utf-8")
    with model_server(noting("A?", calls=2)) as server:
        first = start_noting(folder, server, in_this_process, "--approve", "none", "--json")
        asked = result_of(first)["questions"]
        assert [(one["text"], one["branch"], one["detail"]["asks"]["note"]) for one in asked] == [
            ("Who for?", "t1", "A? 0"),
            ("Who for?", "t1", "A? 1"),
        ]
        words = [part for name in pending(first) for part in ("--answer", f"{name}=Ada")]
        second = in_this_process(folder, "resume", "r", *words, "--json", server=server)
        assert [one["text"] for one in result_of(second)["questions"]] == ["Why?", "Why?"]
        words = [part for name in pending(second) for part in ("--answer", f"{name}=because")]
        last = in_this_process(folder, "resume", "r", *words, server=server)
    assert (last.returncode, repeated(server)) == (0, [])
    assert told_to_model(server) == ["filed: A? 0 for Ada, because", "filed: A? 1 for Ada, because"]


async def test_a_graph_that_is_run_without_us_asks_by_langgraphs_own_interrupt(documents: Path) -> None:
    async with model_server(agents_script()) as server:
        graph = (await asyncio.to_thread(load_workflow, "research")).compile(checkpointer=InMemorySaver())
        context = RunContext(models={"": server.chat_model()}, controls=Controls(approve=("plan",)))
        config: RunnableConfig = {"configurable": {"thread_id": "1"}}
        given = {"question": "What limits a resume?", "documents": [str(documents)]}
        state = await graph.ainvoke(given, config, context=context)
        (asked,) = state["__interrupt__"]
        assert (asked.value["kind"], asked.value["detail"]) == ("plan", ["What limits a resume?"])
        await graph.ainvoke(Command(resume=["Who designed the journal?"]), config, context=context)
        done = (await graph.aget_state(config)).values["branches"]
        await context.aclose()
    assert [branch.task.question for branch in done] == ["Who designed the journal?"]


FOREIGN = '''
"""A graph of LangGraph's own kind that calls tools."""

from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode


@tool
def wipe(path: str) -> str:
    """Wipe a disk."""
    return f"wiped {path}"


async def model(state: MessagesState) -> dict:
    return {"messages": [AIMessage("", tool_calls=[{"name": "wipe", "args": {"path": "/dev/x"}, "id": "c1"}])]}


graph = StateGraph(MessagesState)
graph.add_node("model", model)
graph.add_node("tools", ToolNode([wipe]))
graph.add_edge(START, "model")
graph.add_edge("model", "tools")
graph.add_edge("tools", END)
'''


@pytest.mark.parametrize(("answer", "says"), [("yes", "wiped /dev/x"), ("no", "Denied by the user")])
def test_tools_of_graphs_that_know_nothing_of_this_wait_for_a_yes_too(tmp_path: Path, answer: str, says: str) -> None:
    (tmp_path / "foreign.py").write_text(FOREIGN, encoding="utf-8")
    first = in_this_process(tmp_path, "./foreign.py", "go", "--run-id", "r", "--approve", "tools")
    assert (first.returncode, "wipe\n    path: /dev/x" in first.stderr) == (5, True), first.stderr
    last = in_this_process(tmp_path, "resume", "r", "--answer", answer, "--json")
    assert (last.returncode, says in result_of(last)["output"]["messages"][-1]["content"]) == (0, True), last.stderr


def test_names_stand_for_the_same_questions_in_show_and_at_the_end_of_the_run(documents: Path) -> None:
    first = in_this_process(
        documents, "research", "Who?", "--documents", str(documents), "--model", "offline", "--approve", "plan", "--run-id", "r"
    )
    shown = in_this_process(documents, "show", "r", "--json")
    (question,) = json.loads(shown.stdout)["questions"]
    assert pending(first) == [question["name"]]
    assert names([Question.model_validate({key: question[key] for key in Question.model_fields})]) == {question["id"]: question["name"]}
