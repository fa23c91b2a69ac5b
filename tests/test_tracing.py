"""What LangSmith is sent, received by its own protocol: one tree that a person can read, without keys, and never in the way."""

import base64
import json
import re
import subprocess
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from command_line import Python, environ, orchestrator, python
from langsmith_receiver import Receiver, receiving
from test_otlp import collector

QUESTION = "What limits the depth of a resume?"


def research(documents: Path, variables: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    words = ["research", QUESTION, "--documents", str(documents), "--model", "offline", "--json", *options]
    return orchestrator(None, *words, env=environ(**variables))


Sent = tuple[Receiver, dict[str, Any], str]


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Sent:
    """What LangSmith got of a run, the run's result, and its stderr."""
    folder = tmp_path_factory.mktemp("sent")
    (folder / "resume.md").write_text(
        "# Resume\n\nThe depth of a resume is limited by the journal. Ada Byron designed it.\n", encoding="utf-8"
    )
    with receiving() as receiver:
        options = ("--run-id", "mine", "--trace-tag", "nightly", "--trace-project", "other")
        done = research(folder, {**receiver.environ(), "ORCHESTRATOR_HOME": str(folder / "home")}, *options)
    assert done.returncode == 0, done.stderr
    return receiver, json.loads(done.stdout), done.stderr


def test_a_run_is_one_tree_under_names_that_a_person_recognises(sent: Sent) -> None:
    receiver, result, _ = sent
    judgements = [["verifier model"]] * len(result["output"]["findings"])
    branch = [f"branch 1: {QUESTION}", ["researcher", ["search"], ["researcher model"]], ["verifier", *judgements]]
    first = ["round 1", ["planner", ["documents"], ["planner model"]], branch]
    assert receiver.tree() == [["research", first, ["round 2", ["planner", ["planner model"]]], ["writer", ["writer model"]]]]
    assert receiver.encodings == {"", "zstd"}  # until the server has said that it takes it


def test_every_span_says_whose_it_is(sent: Sent) -> None:
    receiver, _, _ = sent
    [root] = receiver.named("research")
    known = root["extra"]["metadata"]
    assert {span["extra"]["metadata"]["run_id"] for span in receiver.spans.values()} == {"mine"}
    assert {span["extra"]["metadata"]["thread_id"] for span in receiver.spans.values()} == {"mine"}
    assert {span["session_name"] for span in receiver.spans.values()} == {"other"}
    assert all({"workflow:research", "nightly"} <= {*span["tags"]} for span in receiver.spans.values())
    assert (known["attempt"], len(known["fingerprint"])) == (1, 16)
    assert {"orchestrator", "langgraph", "langchain-core", "langsmith", "python"} <= known["versions"].keys()
    [branch] = receiver.named(f"branch 1: {QUESTION}")
    assert branch["extra"]["metadata"]["task_id"] == "t1"
    for call in receiver.named("researcher model"):
        assert (call["run_type"], {"role:researcher", "model:offline"} <= {*call["tags"]}) == ("llm", True)
        assert call["extra"]["metadata"]["usage_metadata"].keys() == {
            "input_tokens",
            "output_tokens",
            "total_tokens",
            "input_cost",
            "output_cost",
            "total_cost",
        }
        assert [message["role"] for message in call["inputs"]["messages"]] == ["system", "user"]


def test_verdicts_are_feedback_and_the_result_says_where_the_run_is(sent: Sent) -> None:
    receiver, result, errors = sent
    [root] = receiver.named("research")
    assert {(told["key"], told["score"]) for told in receiver.feedback} == {("supported_share", 1.0), ("gaps", 0), ("lost_branches", 0)}
    assert {told["run_id"] for told in receiver.feedback} == {root["id"]}
    assert result["trace_url"].endswith(f"/r/{root['id']}?poll=true")
    assert f"trace: {result['trace_url']}" in errors


def test_half_of_the_runs_are_none_or_all_of_one(documents: Path) -> None:
    with receiving() as receiver:
        done = research(documents, receiver.environ(), "--trace-sampling", "0")
    assert (done.returncode, receiver.spans) == (0, {})


@pytest.mark.parametrize("fault", ["refused", "hang", "slow 3", 500, 401])
def test_a_langsmith_that_fails_changes_nothing_but_a_line(fault: Any, documents: Path) -> None:
    with receiving(None if fault == "refused" else fault) as receiver:
        variables = receiver.environ()
        if fault == "refused":
            with receiving() as gone:
                variables = gone.environ()  # its port is free again
        words = ["research", QUESTION, "--documents", str(documents), "--model", "offline", "--json"]
        pipe = subprocess.PIPE
        process = Python("-m", "orchestrator", *words, env=environ(**variables), stdout=pipe, stderr=pipe, text=True)
        with process:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline()
            delivered = time.monotonic()
            errors = process.stderr.read()
            took = time.monotonic() - delivered
    assert process.returncode == 0
    assert json.loads(line)["status"] == "complete"
    told = [line for line in errors.splitlines() if "LangSmith" in line]
    assert len(told) == 1, errors
    assert " spans)" in told[0]
    assert took <= 5.0  # the bar itself: a promise to users, and twice what was measured


def test_what_fails_once_is_sent_again(documents: Path) -> None:
    with receiving() as receiver:
        receiver.failures = 1
        done = research(documents, receiver.environ())
    assert (done.returncode, "LangSmith" in done.stderr) == (0, False)
    assert [tree[0] for tree in receiver.tree()] == ["research"]


SECRETS = {
    "OPENAI_API_KEY": "sk-planted0123456789abcdef",
    "TAVILY_API_KEY": 'pla"nted/with\\odd+chars=',
    "MY_SERVICE_TOKEN": "planted-token-value-1",
    "DB_PASSWORD": "planted pass word",
}
SHAPED = [
    "sk-proj-abcdefghij0123456789",
    "ghp_abcdefghijklmnopqrst0123456789",
    "AKIAABCDEFGHIJKLMNOP",
    "AIzaabcdefghijklmnopqrstuvwxyz01234",
    "xoxb-123456789012-abcdefghij",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.abcdefghijklmnop",
    "postgresql://me:planted-pw@db.example.org/x",
    "hf_abcdefghijklmnopqrstuvwx",
    "glpat-abcdefghijklmnopqrst",
    "lsv2_pt_abcdefghijklmnopqrstuvwx",
]
LEAKS = """
import base64, os, urllib.parse
from typing import TypedDict
from langgraph.graph import START, StateGraph

class State(TypedDict, total=False):
    text: str
    told: str

async def leak(state: State) -> State:
    '''Everything that a careless node could do with keys.'''
    names = ("OPENAI_API_KEY", "TAVILY_API_KEY", "MY_SERVICE_TOKEN", "DB_PASSWORD")
    values = [os.environ[name] for name in names]
    forms = [*values, *(base64.b64encode(b"x:" + v.encode()).decode() for v in values), *map(urllib.parse.quote_plus, values)]
    return {"told": state["text"] + " ".join(forms)}

async def fail(state: State) -> State:
    raise RuntimeError("could not log in with " + state["told"])

graph = StateGraph(State).add_node("leak", leak).add_node("fail", fail)
graph.add_edge(START, "leak").add_edge("leak", "fail")
"""


def inflated(page: Path) -> str:
    """A page with its data, which stands in it compressed."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r">([A-Za-z0-9+/=]{64,})</script>", text)
    assert len(blocks) == 2
    return text + "".join(zlib.decompress(base64.b64decode(block)).decode() for block in blocks)


def leaked(text: str) -> list[str]:
    """The planted keys that stand in a text: any piece of one counts."""
    pieces = [*SECRETS.values(), *SHAPED[:6], *SHAPED[7:], "planted", "lanted"]
    return [piece for piece in pieces if piece in text or json.dumps(piece)[1:-1] in text]


@pytest.mark.parametrize("content", ["redacted", "none"])
def test_planted_keys_are_in_nothing_that_leaves(content: str, tmp_path: Path) -> None:
    """R17: 4 values of variables, also in other forms, and 10 that only look like keys, in inputs, outputs and errors."""
    (tmp_path / "leaky.py").write_text(LEAKS)
    page = tmp_path / "trace.html"
    with receiving() as receiver, receiving() as later, collector() as (endpoint, spans):

        def command(*words: str) -> subprocess.CompletedProcess[str]:
            variables = {**receiver.environ(), **SECRETS, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
            return orchestrator(None, *words, "--trace-content", content, env=environ(**variables))

        done = command(str(tmp_path / "leaky.py"), " ".join(SHAPED), "--run-id", "leaky", "--trace-otlp")
        exported = [command("trace", "leaky", *how).stdout for how in (["--json"], ["--all"])]
        assert command("trace", "leaky", "--html", str(page)).returncode == 0
        live = b"\n".join(receiver.bodies).decode()
        receiver.bodies.clear()
        assert command("trace", "leaky", "--upload").returncode == 0
    assert done.returncode == 1, done.stderr
    assert later.bodies == []
    assert len(spans) == 3
    sent = live
    sinks = {"LangSmith": live, "upload": b"\n".join(receiver.bodies).decode(), "OpenTelemetry": str(spans), "page": inflated(page)}
    for name, text in {**sinks, "JSON": exported[0], "terminal": exported[1]}.items():
        assert (name, leaked(text)) == (name, [])
    [failed] = receiver.named("fail")
    assert ("could not log in" in failed["error"]) == (content == "redacted")
    assert ("[redacted]" in sent) == (content == "redacted")


BROKEN = """
import asyncio, sys
from orchestrator import run
from orchestrator.tracing import recording

def broken(content):
    raise MemoryError("no room for it")

recording.Redactor = broken
print(asyncio.run(run("research", {"question": sys.argv[1], "documents": [sys.argv[2]]}, model="offline")).status)
"""


def test_where_keys_cannot_be_taken_out_tracing_is_off_and_says_so(documents: Path) -> None:
    with receiving() as receiver:
        done = python("-c", BROKEN, QUESTION, str(documents), env=environ(**receiver.environ()))
    assert (done.stdout, receiver.paths) == ("complete\n", [])
    assert "tracing is off: keys could not be taken out of the trace: no room for it" in done.stderr


def test_what_cannot_be_taken_out_is_not_sent(documents: Path) -> None:
    with receiving() as receiver:
        done = research(documents, {**receiver.environ(), "ORCHESTRATOR_TRACE_CONTENT": "redactde"})
    assert (done.returncode, receiver.spans) == (2, {})
    assert "did you mean redacted?" in done.stderr


def test_options_of_langsmith_where_it_is_off_are_refused(documents: Path) -> None:
    done = research(documents, {"LANGSMITH_TRACING": "false"}, "--trace-project", "x")
    assert done.returncode == 2
    assert "LangSmith is off" in done.stderr


_THREADS = """
import asyncio, sys, threading
from orchestrator import run
result = asyncio.run(run("research", {"question": sys.argv[1], "documents": [sys.argv[2]]}, model="offline"))
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        thread.join(10)
print(result.status, bool(result.trace_url), [thread.name for thread in threading.enumerate()])
"""


def test_a_run_in_python_is_traced_and_leaves_no_thread(documents: Path) -> None:
    with receiving() as receiver:
        done = python("-c", _THREADS, QUESTION, str(documents), env=environ(**receiver.environ()))
    assert (done.stdout, done.stderr) == ("complete True ['MainThread']\n", "")
    assert {span["name"] for span in receiver.spans.values()} >= {"research", "planner", "writer"}
