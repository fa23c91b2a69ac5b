"""Models: from a string to a chat model that works, or an error that says why."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any, TypedDict

import pytest
from asking import GOOD, KEY, QUESTION, Plan, terms
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph

from orchestrator.errors import (
    ModelSpecError,
)
from orchestrator.models import Answer, ModelChoice, ask, choose_model, resolve_model, warnings_for
from orchestrator.testing import Reply, answer_for, model_server

CHOICES: list[tuple[str | list[str] | None, dict[str, str], ModelChoice]] = [
    (None, {}, ModelChoice(("offline",), "no model is named and OPENAI_API_KEY is not set")),
    (None, {"OPENAI_API_KEY": " "}, ModelChoice(("offline",), "no model is named and OPENAI_API_KEY is not set")),
    (None, {"OPENAI_API_KEY": KEY}, ModelChoice(("openai:gpt-5-mini",), "OPENAI_API_KEY is set")),
    (
        None,
        {"OPENAI_API_KEY": KEY, "ORCHESTRATOR_MODEL": "ollama:llama3.2"},
        ModelChoice(("ollama:llama3.2",), "set in ORCHESTRATOR_MODEL"),
    ),
    (None, {"ORCHESTRATOR_MODEL": "x:y, offline"}, ModelChoice(("x:y", "offline"), "set in ORCHESTRATOR_MODEL")),
    (["x:y", " z:y"], {"ORCHESTRATOR_MODEL": "offline"}, ModelChoice(("x:y", "z:y"), "asked for")),
    ("offline", {"OPENAI_API_KEY": KEY, "ORCHESTRATOR_MODEL": "x:y"}, ModelChoice(("offline",), "asked for")),
]


@pytest.mark.parametrize(("spec", "environ", "choice"), CHOICES)
def test_what_is_named_first_counts(spec: str | list[str] | None, environ: Mapping[str, str], choice: ModelChoice) -> None:
    assert choose_model(spec, environ) == choice


def test_a_list_in_the_environment_is_checked_as_that_of_the_option_is() -> None:
    with pytest.raises(ModelSpecError, match="ORCHESTRATOR_MODEL 'x:y,' has an empty name in its list"):
        choose_model(None, {"ORCHESTRATOR_MODEL": "x:y,"})
    with pytest.raises(ModelSpecError, match="ORCHESTRATOR_MODEL names 'x:y' twice in one list"):
        choose_model(None, {"ORCHESTRATOR_MODEL": "x:y,x:y"})


BAD_SPECS = [
    ("openai:", {}, "'openai:' names no model"),
    (":gpt-5", {}, "':gpt-5' names no provider"),
    ("  ", {}, "the model string is blank"),
    ("openai:gpt 5", {}, "'openai:gpt 5' is not a model"),
    ("openai:a\nb", {}, "is not a model"),
    ("x" * 300, {}, "is not a model"),
    ("opnai:gpt-5", {}, "unknown provider 'opnai' in 'opnai:gpt-5'. did you mean 'openai'?"),
    ("zzz:gpt-5", {}, "unknown provider 'zzz' in 'zzz:gpt-5'. known: anthropic,"),
    ("ofline", {}, "no provider is known for the model 'ofline'. did you mean 'offline'?"),
    ("llama3.2", {}, "no provider is known for the model 'llama3.2'. a model is `offline` or `provider:model`"),
    ("anthropic:claude-x", {}, "the package for 'anthropic' is not installed. pip install langchain-anthropic"),
    ("openai:m", {}, "OPENAI_API_KEY is not set. the model asks api.openai.com. export OPENAI_API_KEY"),
    ("gpt-5-mini", {}, "OPENAI_API_KEY is not set"),
    ("openai:m", {"OPENAI_API_KEY": "  "}, "OPENAI_API_KEY is blank"),
    ("openai:m", {"OPENAI_API_KEY": f'"{KEY}"'}, "OPENAI_API_KEY is in quotes"),
    ("openai:m", {"OPENAI_API_KEY": f"{KEY}\n"}, "OPENAI_API_KEY contains a line break"),
    ("openai:m", {"OPENAI_API_KEY": f"{KEY} x"}, "OPENAI_API_KEY contains white space"),
    ("openai:m", {"OPENAI_API_KEY": f"{KEY}\u2019"}, "OPENAI_API_KEY contains characters that no key has"),
    ("openai:m", {"OPENAI_BASE_URL": "https://gateway.example.com/v1"}, "OPENAI_API_KEY is not set. the model asks gateway.example.com"),
    ("openai:m", {"OPENAI_BASE_URL": "localhost:11434/v1"}, "OPENAI_BASE_URL is not a URL: 'localhost:11434/v1'"),
    ("openai:m", {"OPENAI_BASE_URL": "http://[::1/v1"}, "OPENAI_BASE_URL is not a URL"),
    ("openai:m", {"OPENAI_BASE_URL": "http://h:99999/v1"}, "OPENAI_BASE_URL is not a URL"),
    ("openai:m", {"OPENAI_BASE_URL": '"http://127.0.0.1/v1"'}, "OPENAI_BASE_URL has quotes or white space"),
    ("openai:m", {"OPENAI_BASE_URL": "http://127.0.0.1/v1/chat/completions"}, "OPENAI_BASE_URL ends in the path of one call"),
    ("openai:m", {"OPENAI_API_BASE": "ftp://127.0.0.1"}, "OPENAI_API_BASE is not a URL"),
]


@pytest.mark.parametrize(("spec", "environ", "said"), BAD_SPECS)
def test_a_model_that_cannot_work_is_said_before_anything_starts(
    spec: str, environ: Mapping[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ModelSpecError) as caught:
        resolve_model(spec)
    assert said in str(caught.value)
    assert KEY not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_an_openai_model_has_our_settings_and_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    model = resolve_model("openai:gpt-5-mini")
    assert isinstance(model, ChatOpenAI)
    assert (model.model_name, model.stream_usage, model.request_timeout, model.temperature) == ("gpt-5-mini", True, 600.0, None)
    assert (model.root_async_client.max_retries, model.stream_chunk_timeout) == (0, None)  # `ask` tries again, and watches streams
    assert resolve_model("openai:gpt-5-mini") is model
    assert resolve_model("gpt-5-mini") is model
    monkeypatch.setenv("OPENAI_BASE_URL", " ")
    monkeypatch.setenv("OPENAI_API_BASE", "")
    assert resolve_model("openai:gpt-5-mini") is model
    assert str(model.root_async_client.base_url) == "https://api.openai.com/v1/"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert resolve_model("openai:gpt-5-mini") is not model


def test_a_model_answers_blocking_calls_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with model_server(["one", "two"]) as server:
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        assert [resolve_model("openai:blocking").invoke("hello").text for _ in range(2)] == ["one", "two"]


@pytest.mark.parametrize(
    "host", ["127.0.0.1:11434", "localhost:8000", "[::1]:8000", "192.168.1.5", "10.0.0.3:80", "ollama:11434", "gpu.local"]
)
def test_a_server_of_ones_own_needs_no_key(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://{host}/v1")
    model = resolve_model("openai:org/model:free")
    assert isinstance(model, ChatOpenAI)
    assert model.model_name == "org/model:free"
    assert str(model.root_async_client.base_url) == f"http://{host.removesuffix(':80')}/v1/"


CLEAR_TEXT = "OPENAI_BASE_URL is http: the key and every prompt travel to llm.example.com in clear text"
WARNINGS = [
    ("openai:m", {"OPENAI_BASE_URL": "http://llm.example.com/v1", "OPENAI_API_KEY": KEY}, [CLEAR_TEXT]),
    ("openai:m", {"OPENAI_BASE_URL": "https://llm.example.com/v1", "OPENAI_API_KEY": KEY}, []),
    ("openai:m", {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "OPENAI_API_KEY": KEY}, []),
    ("openai:m", {"OPENAI_BASE_URL": "http://llm.example.com/v1"}, []),
    ("ollama:m", {"OPENAI_BASE_URL": "http://llm.example.com/v1", "OPENAI_API_KEY": KEY}, []),
    ("offline", {}, []),
]


@pytest.mark.parametrize(("spec", "environ", "warnings"), WARNINGS)
def test_a_key_in_clear_text_is_warned_of(spec: str, environ: Mapping[str, str], warnings: list[str]) -> None:
    assert warnings_for(spec, environ) == warnings


def test_choosing_a_model_imports_nothing_heavy_and_an_openai_model_does_without_langchain() -> None:
    code = (
        "import os, sys; from orchestrator.models import choose_model, resolve_model; choose_model(None, {});"
        "heavy = {'langchain_core', 'langchain_openai', 'openai', 'langgraph', 'pydantic'}; assert not heavy & set(sys.modules);"
        "resolve_model('openai:m'); assert 'langchain' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"OPENAI_API_KEY": KEY}, timeout=50)


def test_a_model_serves_one_event_loop_after_the_other_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    with model_server(lambda _: Reply(value=GOOD)) as server:
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)

        def run() -> None:
            async def twice() -> list[Answer[Plan]]:
                return [await ask(resolve_model("openai:loops"), QUESTION, Plan, role="planner", terms=terms()) for _ in range(2)]

            answers.extend(answer.value for answer in asyncio.run(twice()))

        answers: list[Plan | None] = []
        run()
        run()
        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [Plan.model_validate(GOOD)] * 8


class State(TypedDict, total=False):
    plan: list[str]


async def test_a_call_in_a_node_is_seen_by_the_graphs_callbacks_and_streams() -> None:
    started: list[tuple[str, str, list[str]]] = []

    class Seen(AsyncCallbackHandler):
        async def on_chat_model_start(self, *_: Any, **kwargs: Any) -> None:
            started.append((kwargs["name"], kwargs["metadata"]["langgraph_node"], sorted(kwargs["tags"])))

    async with model_server(lambda _: Reply(value=GOOD)) as server:
        model = server.chat_model()

        async def plan(state: State) -> State:
            answer = await ask(model, QUESTION, Plan, role="planner", terms=terms())
            return {"plan": answer.value.questions if answer.value else []}

        graph = StateGraph(State)
        graph.add_node("plan", plan)
        graph.add_edge(START, "plan")
        graph.add_edge("plan", END)
        compiled = graph.compile()
        config: Any = {"callbacks": [Seen()], "tags": ["mine"]}
        assert await compiled.ainvoke({}, config) == {"plan": ["What is asked?"]}
        parts: list[Any] = [part async for part in compiled.astream({}, config, stream_mode="messages")]
    assert [(name, node) for name, node, _ in started] == [("planner model", "plan")] * 2
    assert all({"mine", "role:planner"} <= set(tags) for _, _, tags in started)
    chunks: list[Any] = [chunk for chunk, metadata in parts if metadata["role"] == "planner" and metadata["langgraph_node"] == "plan"]
    assert json.loads("".join(str(chunk.content) for chunk in chunks)) == GOOD
    assert sum((chunk.usage_metadata or {"total_tokens": 0})["total_tokens"] for chunk in chunks) == 20
    assert answer_for(server.requests[1].body) == "Plan"
