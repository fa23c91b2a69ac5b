"""Every shipped workflow is a LangChain Runnable: what LangChain and LangGraph do with one works on its graph."""

import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
from langchain_core.runnables import Runnable, RunnableLambda

from orchestrator import context
from orchestrator.errors import RefusedError
from orchestrator.testing import ModelServer, Reply, agents_script, model_server, tone

ROOT = Path(__file__).parent.parent
NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.py") if not path.stem.startswith("_"))
SCRIPT: Mapping[str | None, Any] = {
    "Comparison": {"answer": [], "agreements": [], "contradictions": []},
    "DirectAnswer": {"answer": "The journal limits it."},
    "Summary": {"summary": "Slow, but good.", "sentiment": "mixed", "key_points": ["It was slow."]},
    "Sentiment": {"sentiment": "mixed"},
    "clock": "It is noon.",  # who is offered this tool last is asked for a text
    "read_passage": "Nothing limits it.",
}


def spoken(documents: Path) -> dict[str, Any]:
    """A recording of its own, as two runs at once may not write one file."""
    folder = Path(tempfile.mkdtemp(dir=documents.parent))
    (folder / "question.wav").write_bytes(tone("What limits a resume?"))
    by = {"transcriber": "openai:whisper-1", "speaker": "openai:tts-1"}
    return {"audio": str(folder / "question.wav"), "speech": str(folder / "answer.wav"), "documents": [str(documents)], **by}


# An input of each workflow, given a folder of documents; its keys are the graph's own. A new workflow gets a line here.
EXAMPLES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "ask": lambda documents: {"question": "What limits the depth of a resume?", "documents": [str(documents)]},
    "assistant": lambda documents: {"messages": [{"role": "user", "content": "What is the time?"}], "tools": ["clock"]},
    "chat": lambda documents: {"messages": [{"role": "user", "content": "What limits a resume?"}], "documents": [str(documents)]},
    "compare": lambda documents: {"queries": ["Who?", "What?"], "limit": 2},
    "perspectives": lambda documents: {
        "question": "What limits the depth of a resume?",
        "documents": [str(documents)],
        "perspectives": ["as a user", "as an operator"],
    },
    "pipeline": lambda documents: {"text": "The service was slow but the food was wonderful."},
    "plans": lambda documents: {"question": "What limits the depth of a resume?", "documents": [str(documents)]},
    "race": lambda documents: {"question": "What limits the depth of a resume?"},
    "research": lambda documents: {"question": "What limits the depth of a resume?", "documents": [str(documents)]},
    "summarize": lambda documents: {"documents": [str(documents)]},
    "voice": spoken,
    "wordcount": lambda documents: {"texts": ["one two three", "four five"]},
}


@pytest.fixture
def graph(request: pytest.FixtureRequest) -> Any:
    return import_module(f"workflows.{request.param}").graph


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModelServer], None]:
    """Makes a server the one that a graph asks which is called by itself: the model of the environment."""

    def asks(server: ModelServer) -> None:
        monkeypatch.setattr(context, "_defaults", WeakKeyDictionary())  # of this event loop, from tests before
        for name, value in {**server.environ, "ORCHESTRATOR_MODEL": "openai:test,openai:other"}.items():
            monkeypatch.setenv(name, value)

    return asks


@pytest.fixture
async def server(asking: Callable[[ModelServer], None]) -> AsyncIterator[ModelServer]:
    async with model_server(agents_script(dict(SCRIPT))) as server:
        asking(server)
        yield server


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_workflow_has_an_example_and_offers_its_graph(name: str) -> None:
    assert name in EXAMPLES, f"workflows/{name}.py has no example input: add a line to EXAMPLES in {Path(__file__).name}"
    graph = getattr(import_module(f"workflows.{name}"), "graph", None)
    assert isinstance(graph, Runnable), f"workflows/{name}.py offers no graph: end it with `graph = workflow.compile()`"


each = pytest.mark.parametrize(("graph", "name"), [(name, name) for name in NAMES], indirect=["graph"])


@each
async def test_ainvoke(graph: Any, name: str, documents: Path, server: ModelServer) -> None:
    output = await graph.ainvoke(EXAMPLES[name](documents))
    schema = graph.get_output_jsonschema()
    assert {*schema.get("required", ())} <= output.keys() <= schema["properties"].keys()
    assert any(output.values())


@each
async def test_astream_tells_each_step_and_ends_with_the_whole_output(graph: Any, name: str, documents: Path, server: ModelServer) -> None:
    steps = [step async for step in graph.astream(EXAMPLES[name](documents), stream_mode="updates")]
    last = [value async for value in graph.astream(EXAMPLES[name](documents), stream_mode="values")][-1]
    assert {node for step in steps for node in step} <= {*graph.nodes}
    assert last.keys() >= {*graph.get_output_jsonschema().get("required", ())}


@each
async def test_abatch_keeps_the_order_and_composes(graph: Any, name: str, documents: Path, server: ModelServer) -> None:
    chain = RunnableLambda(lambda _: EXAMPLES[name](documents)) | graph | RunnableLambda(lambda output: sorted(output))
    one, two = await chain.abatch(["first", "second"], config={"max_concurrency": 2})
    assert one == two != []


async def test_the_results_of_a_batch_are_in_the_order_of_its_inputs(server: ModelServer) -> None:
    graph = import_module("workflows.pipeline").graph
    texts = [" ".join(["word"] * count) for count in (3, 1, 2)]
    outputs = await graph.abatch([{"text": text} for text in texts])
    assert [output["found"]["words"] for output in outputs] == [3, 1, 2]


async def test_an_endpoint_that_fails_is_an_error_of_the_call(asking: Callable[[ModelServer], None]) -> None:
    async with model_server(lambda _: Reply(fault="refusal")) as server:
        asking(server)
        answers = await import_module("workflows.pipeline").graph.abatch([{"text": "Good."}], return_exceptions=True)
    assert [type(answer) for answer in answers] == [RefusedError]
