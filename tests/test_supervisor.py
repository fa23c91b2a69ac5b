"""The supervisor with agents of the user's own: plain graphs, no model, so that every path can be taken at will."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from orchestrator import Controls, Result, Workflow, create_supervisor, load_workflow, run
from orchestrator.errors import GraphError, RefusedError
from orchestrator.state import Citation, Finding, Sentence, Verdict

QUOTE = "The depth of a resume is limited by the journal."
Answering = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]


class Everything(TypedDict, total=False):
    question: str
    documents: list[str]
    feedback: str
    task_id: str
    open_questions: list[str]
    questions: list[str]
    findings: list[Finding]
    answer: list[Sentence]


def agent(answering: Answering, output: str) -> Any:
    """A graph of one node that answers one key."""
    schema = TypedDict("schema", {output: Everything.__annotations__[output]})  # type: ignore[operator]  # a schema made at run time
    graph = StateGraph(Everything, output_schema=schema)
    graph.add_node("own", answering)
    graph.add_edge(START, "own")
    graph.add_edge("own", END)
    return graph.compile()


def planner(*rounds: list[str]) -> Any:
    """Asks the questions of each round in turn, then none."""
    left = list(rounds)

    async def own(state: Mapping[str, Any]) -> dict[str, Any]:
        return {"questions": left.pop(0) if left else []}

    return agent(own, "questions")


def finding(claim: str, folder: Path) -> Finding:
    source = str(folder / "resume.md")
    start = (folder / "resume.md").read_text(encoding="utf-8").index(QUOTE)
    return Finding(claim=claim, citations=[Citation(source=source, quote=QUOTE, start=start, end=start + len(QUOTE))])


def researcher(folder: Path, fails: Mapping[str, Exception] | None = None, asked: list[Mapping[str, Any]] | None = None) -> Any:
    """Claims `<question> holds.`, or raises what `fails` says for that question."""

    async def own(state: Mapping[str, Any]) -> dict[str, Any]:
        if asked is not None:
            asked.append(dict(state))
        if error := (fails or {}).get(state["question"]):
            raise error
        return {"findings": [finding(f"{state['question']} holds.", folder)]}

    return agent(own, "findings")


def verifier(label: Callable[[Finding], str] = lambda _: "supported") -> Any:
    async def own(state: Mapping[str, Any]) -> dict[str, Any]:
        judged = [f.model_copy(update={"verdict": Verdict(label=label(f), reason="as told")}) for f in state["findings"]]  # type: ignore[arg-type]  # a test's label
        return {"findings": judged}

    return agent(own, "findings")


def writer(*sentences: Sentence, error: Exception | None = None) -> Any:
    async def own(state: Mapping[str, Any]) -> dict[str, Any]:
        if error is not None:
            raise error
        return {"answer": list(sentences) or [Sentence(text=f.claim, findings=[n]) for n, f in enumerate(state["findings"], start=1)]}

    return agent(own, "answer")


async def outcome(folder: Path, *agents: Any, controls: Mapping[str, Any] | None = None, **limits: int) -> Result:
    workflow = Workflow(create_supervisor(*agents, **limits), name="own")
    return await run(workflow, {"question": "What?", "documents": [str(folder)]}, model="offline", controls=controls)


def told(result: Result) -> list[tuple[str, str]]:
    return [(branch["task"], branch["status"]) for branch in result.branches]


async def test_branches_become_a_report_with_a_citation_a_sentence(documents: Path) -> None:
    result = await outcome(documents, planner(["a", "b"]), researcher(documents), verifier(), writer())
    assert (result.status, result.error, result.exit_code) == ("complete", None, 0)
    assert told(result) == [("a", "ok"), ("b", "ok")]
    assert [found["claim"] for found in result.output["findings"]] == ["a holds.", "b holds."]
    assert "a holds. [1] b holds. [1]" in result.output["report"]
    assert f"1. {documents / 'resume.md'}, line 3: “{QUOTE}”" in result.output["report"]
    assert result.output["gaps"] == []


async def test_a_failed_branch_is_data_and_the_run_partial(documents: Path) -> None:
    fails = {"b": RefusedError("the researcher model refused to answer")}
    result = await outcome(documents, planner(["a", "b", "c"]), researcher(documents, fails), verifier(), writer())
    assert (result.status, result.exit_code) == ("partial", 3)
    assert told(result) == [("a", "ok"), ("b", "refused"), ("c", "ok")]
    assert result.error == "the researcher model refused to answer"
    assert result.output["gaps"] == ["b (the researcher model refused to answer)"]
    assert "> Partial: 1 of 3 questions could not be researched" in result.output["report"]
    assert "## Not answered\n\n- b (the researcher model refused to answer)" in result.output["report"]


async def test_an_error_of_somebody_elses_code_fails_its_branch_only(documents: Path) -> None:
    result = await outcome(documents, planner(["a", "b"]), researcher(documents, {"a": KeyError("x")}), verifier(), writer())
    assert told(result) == [("a", "failed"), ("b", "ok")]
    assert result.branches[0]["error"] == "KeyError: 'x'"


async def test_when_every_branch_fails_the_run_has_failed_with_one_cause(documents: Path) -> None:
    fails = dict.fromkeys("abc", TimeoutError("slow"))
    result = await outcome(documents, planner(["a", "b", "c"]), researcher(documents, fails), verifier(), writer())
    assert (result.status, result.error, result.exit_code) == ("failed", "TimeoutError: slow (3 times)", 1)
    assert {status for _, status in told(result)} == {"timed_out"}


async def test_rejected_claims_go_back_with_the_reason_at_most_max_repairs_times(documents: Path) -> None:
    asked: list[Mapping[str, Any]] = []
    agents = planner(["a"]), researcher(documents, asked=asked), verifier(lambda _: "contradicted"), writer()
    result = await outcome(documents, *agents, max_repairs=2)
    assert [state.get("feedback") for state in asked] == [None, "- 'a holds.': as told", "- 'a holds.': as told"]
    assert (result.branches[0]["attempts"], result.branches[0]["status"]) == (3, "ok")
    assert result.status == "partial"
    assert result.error == "supervisor: no finding is supported by the documents"
    assert result.output["findings"] == []
    assert result.output["gaps"][0] == "a (no claim held: as told)"
    assert "a holds" not in result.output["report"]
    assert "## Findings\n\n- Left out: 1 claim that the quotes did not support." in result.output["report"]
    assert [(found["claim"], found["verdict"]["label"]) for found in result.branches[0]["rejected"]] == [("a holds.", "contradicted")]


async def test_what_was_supported_before_a_failed_repair_is_kept(documents: Path) -> None:
    attempts: list[int] = []

    async def own(state: Mapping[str, Any]) -> dict[str, Any]:
        attempts.append(1)
        if "feedback" in state:
            raise RefusedError("no more")
        return {"findings": [finding("good.", documents), finding("bad.", documents)]}

    judged = verifier(lambda f: "supported" if f.claim == "good." else "unsupported")
    result = await outcome(documents, planner(["a"]), agent(own, "findings"), judged, writer())
    assert len(attempts) == 2
    assert [found["claim"] for found in result.output["findings"]] == ["good."]
    assert (result.status, result.branches[0]["status"], result.error) == ("partial", "refused", "no more")


async def test_another_round_asks_what_is_open_and_repeats_nothing(documents: Path) -> None:
    asked: list[Mapping[str, Any]] = []
    rounds = planner(["a", "A?"], ["a", "b"], ["never"])
    result = await outcome(documents, rounds, researcher(documents, asked=asked), verifier(), writer(), max_rounds=2)
    assert [(state["task_id"], state["question"]) for state in asked] == [("t1", "a"), ("t2", "b")]
    assert told(result) == [("a", "ok"), ("b", "ok")]


async def test_a_failed_task_that_is_asked_again_keeps_its_place(documents: Path) -> None:
    tries: list[str] = []

    async def own(state: Mapping[str, Any]) -> dict[str, Any]:
        tries.append(state["task_id"])
        if tries == ["t1"] or (state["question"] == "a" and tries.count("t1") == 1):
            raise RefusedError("not now")
        return {"findings": [finding(f"{state['question']} holds.", documents)]}

    result = await outcome(documents, planner(["a", "b"], ["a"]), agent(own, "findings"), verifier(), writer())
    assert (result.status, told(result)) == ("complete", [("a", "ok"), ("b", "ok")])


async def test_branches_beyond_the_limit_are_skipped_and_said(documents: Path) -> None:
    agents = planner(["a", "b", "c"]), researcher(documents), verifier(), writer()
    result = await outcome(documents, *agents, controls={"max_branches": 2})
    assert told(result) == [("a", "ok"), ("b", "ok"), ("c", "skipped")]
    assert (result.status, result.error) == ("limited", "not started: max_branches is 2")


async def test_without_the_planner_nothing_is_researched(documents: Path) -> None:
    async def own(state: Mapping[str, Any]) -> dict[str, Any]:
        raise RefusedError("the planner model refused")

    result = await outcome(documents, agent(own, "questions"), researcher(documents), verifier(), writer())
    assert (result.status, result.error, result.branches) == ("failed", "the planner model refused (in step 'plan')", [])


async def test_a_planner_that_fails_later_does_not_lose_what_was_found(documents: Path) -> None:
    rounds = [["a"]]

    async def own(state: Mapping[str, Any]) -> dict[str, Any]:
        if not rounds:
            raise RefusedError("the planner model refused")
        return {"questions": rounds.pop()}

    result = await outcome(documents, agent(own, "questions"), researcher(documents), verifier(), writer())
    assert (result.status, result.error) == ("partial", "planner: the planner model refused")
    assert "a holds. [1]" in result.output["report"]


async def test_without_the_writer_the_findings_are_the_answer(documents: Path) -> None:
    agents = planner(["a"]), researcher(documents), verifier(), writer(error=RefusedError("the writer model refused"))
    result = await outcome(documents, *agents)
    assert (result.status, result.error) == ("partial", "writer: the writer model refused")
    assert "a holds. [1]" in result.output["report"]
    assert "the writer: the writer model refused" in result.output["gaps"]


@pytest.mark.parametrize(
    "bad",
    [
        Sentence(text="Nobody said this.", findings=[]),
        Sentence(text="Nobody said this.", findings=[7]),
        Sentence(text="It happened in 1999.", findings=[1]),
        Sentence(text="  ", findings=[1]),
    ],
)
async def test_a_sentence_that_rests_on_nothing_does_not_enter_the_report(documents: Path, bad: Sentence) -> None:
    good = Sentence(text="The journal is the limit.", findings=[1])
    result = await outcome(documents, planner(["a"]), researcher(documents), verifier(), writer(bad, good))
    assert "The journal is the limit. [1]" in result.output["report"]
    assert bad.text.strip() == "" or bad.text not in result.output["report"]


async def test_markup_of_documents_and_models_stays_text(documents: Path) -> None:
    (documents / "resume.md").write_text(f"{QUOTE} ![x](http://evil/) <script>a</script> [7]\n", encoding="utf-8")

    async def own(state: Mapping[str, Any]) -> dict[str, Any]:
        text = (documents / "resume.md").read_text(encoding="utf-8").strip()
        citation = Citation(source=str(documents / "resume.md"), quote=text, start=0, end=len(text))
        return {"findings": [Finding(claim=text, citations=[citation])]}

    result = await outcome(documents, planner(["a"]), agent(own, "findings"), verifier(), writer())
    report = result.output["report"]
    assert "![x](" not in report
    assert "<script" not in report.replace("\\<script", "")
    assert "[7]" not in report
    assert r"!\[x\](http://evil/) \<script>a\</script> \[7\] [1]" in report


def test_an_agent_that_does_not_answer_its_key_is_named(documents: Path) -> None:
    with pytest.raises(GraphError) as caught:
        create_supervisor(planner(), writer(), verifier(), writer(), max_rounds=0)
    assert caught.value.problems == ["the researcher's output has no 'findings'", "max_rounds is 0: it must be 1 or more"]


async def test_without_the_runner_an_offline_report_still_says_so(documents: Path) -> None:
    workflow = await asyncio.to_thread(load_workflow, "research")
    answer = await workflow.compile().ainvoke({"question": "What limits a resume?", "documents": [str(documents)]})
    assert answer["report"].splitlines()[2].startswith("> No language model was used")
    assert set(answer) == {"report", "findings", "gaps", "sources"}


async def test_the_deadline_ends_a_branch_a_writer_or_a_planner_in_time_to_report_the_findings(documents: Path) -> None:
    rounds = [["a"]]

    async def hang_in_b(state: Mapping[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(3_600 if state["question"] == "b" else 0)
        return {"findings": [finding(f"{state['question']} holds.", documents)]}

    async def hang(state: Mapping[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(3_600)
        return {"answer": []}

    async def hang_in_round_2(state: Mapping[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0 if rounds else 3_600)
        return {"questions": rounds.pop()}

    results = await asyncio.gather(
        *(
            outcome(documents, *agents, controls={"deadline": 4})
            for agents in (
                (planner(["a", "b"], ["never"]), agent(hang_in_b, "findings"), verifier(), writer()),
                (planner(["a"]), researcher(documents), verifier(), agent(hang, "answer")),
                (agent(hang_in_round_2, "questions"), researcher(documents), verifier(), writer()),
            )
        )
    )
    for result in results:
        assert (result.status, result.exit_code, result.error) == ("limited", 4, "the run's deadline of 4 s left no more time")
        assert "a holds. [1]" in result.output["report"]
    assert [told(result) for result in results] == [[("a", "ok"), ("b", "limited")], [("a", "ok")], [("a", "ok")]]
    assert results[0].output["gaps"] == ["b (the run's deadline of 4 s left no more time)"]


async def test_without_time_for_a_first_plan_the_run_is_limited(documents: Path) -> None:
    async def own(state: Mapping[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(3_600)
        return {"questions": []}

    agents = agent(own, "questions"), researcher(documents), verifier(), writer()
    result = await outcome(documents, *agents, controls={"deadline": 1})
    assert (result.status, result.error) == ("limited", "the run's deadline of 1 s left no more time")


async def test_a_task_that_is_asked_again_does_not_shift_the_ids_of_new_ones(documents: Path) -> None:
    asked: list[Mapping[str, Any]] = []
    fails = {"b": RefusedError("no")}
    rounds = planner(["a", "b", "c"], ["b", "d"], ["e"])
    result = await outcome(documents, rounds, researcher(documents, fails, asked), verifier(), writer(), max_rounds=3)
    assert [(state["task_id"], state["question"]) for state in asked[3:]] == [("t2", "b"), ("t4", "d"), ("t5", "e")]
    assert told(result) == [("a", "ok"), ("b", "refused"), ("c", "ok"), ("d", "ok"), ("e", "ok")]


async def test_what_a_task_had_found_before_it_was_run_again_is_kept(documents: Path) -> None:
    """The repair of the first run fails; the second run finds something else."""
    attempts: list[str] = []

    async def own(state: Mapping[str, Any]) -> dict[str, Any]:
        attempts.append(state["task_id"])
        if "feedback" in state:
            raise RefusedError("no more")
        claims = {1: ["good.", "bad."], 2: ["other."]}.get(attempts.count("t1"), ["later."]) if state["task_id"] == "t1" else ["other."]
        return {"findings": [finding(claim, documents) for claim in claims]}

    judged = verifier(lambda f: "unsupported" if f.claim == "bad." else "supported")
    result = await outcome(documents, planner(["a", "b"], ["a"]), agent(own, "findings"), judged, writer())
    assert (result.status, told(result)) == ("complete", [("a", "ok"), ("b", "ok")])
    assert [found["claim"] for found in result.output["findings"]] == ["good.", "later.", "other."]


async def test_a_task_that_is_run_again_counts_as_a_branch_that_was_started(documents: Path) -> None:
    asked: list[Mapping[str, Any]] = []
    fails = dict.fromkeys("bc", RefusedError("no"))
    rounds = planner(["a", "b", "c"], ["b", "c"], ["b", "c"])
    agents = rounds, researcher(documents, fails, asked), verifier(), writer()
    result = await outcome(documents, *agents, controls={"max_branches": 4}, max_rounds=3)
    assert [state["task_id"] for state in asked] == ["t1", "t2", "t3", "t2"]
    assert (result.status, told(result)) == ("partial", [("a", "ok"), ("b", "refused"), ("c", "refused")])


async def test_a_run_that_is_stopped_begins_no_branch_and_asks_no_writer(documents: Path) -> None:
    stop, asked = asyncio.Event(), list[str]()

    async def own(state: Mapping[str, Any]) -> dict[str, Any]:
        asked.append(state["question"])
        if state["question"] == "b":
            stop.set()
            await asyncio.sleep(0.01)  # the run hears of it
        return {"findings": [finding(f"{state['question']} holds.", documents)]}

    agents = planner(["a", "b", "c"], ["never"]), agent(own, "findings"), verifier(), writer(error=AssertionError("the writer was asked"))
    workflow = Workflow(create_supervisor(*agents), name="own", controls=Controls(max_concurrency=1))
    given = {"question": "What?", "documents": [str(documents)]}
    result = await run(workflow, given, model="offline", stop=stop)
    assert (result.status, asked) == ("cancelled", ["a", "b"])
    assert told(result) == [("a", "ok"), ("b", "ok"), ("c", "skipped")]
    assert "a holds. [1] b holds. [1]" in result.output["report"]
    assert result.output["gaps"] == ["c (the run was asked to stop. resume the run)"]


async def test_a_branch_of_the_users_own_agents_is_timed_too(documents: Path) -> None:
    async def own(state: Mapping[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(3_600 if state["question"] == "b" else 0)
        return {"findings": [finding(f"{state['question']} holds.", documents)]}

    agents = planner(["a", "b"]), agent(own, "findings"), verifier(), writer()
    result = await outcome(documents, *agents, controls={"branch_timeout": 1.5})
    assert (result.status, told(result)) == ("partial", [("a", "ok"), ("b", "timed_out")])
    assert result.error == "branch t2 took longer than branch_timeout, 1.5 s. raise --branch-timeout"


async def test_results_of_all_rounds_count_for_the_join_policy(documents: Path) -> None:
    """The first round brings one of two results; the second brings the other, and its other branches are ended."""
    asked: list[str] = []

    async def own(state: Mapping[str, Any]) -> dict[str, Any]:
        asked.append(state["question"])
        await asyncio.sleep(3_600 if state["question"] == "d" else 0)
        return {"findings": [finding(f"{state['question']} holds.", documents)] if state["question"] != "b" else []}

    agents = planner(["a", "b"], ["c", "d"], ["never"]), agent(own, "findings"), verifier(), writer()
    result = await outcome(documents, *agents, controls={"join": "first:2"}, max_rounds=3)
    assert (result.status, sorted(asked)) == ("complete", ["a", "b", "c", "d"])
    assert told(result) == [("a", "ok"), ("b", "ok"), ("c", "ok"), ("d", "skipped")]
    assert result.branches[3]["gap"] == "not needed: first:2 was reached by t1, t3"
