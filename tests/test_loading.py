import asyncio
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from orchestrator.errors import GraphError, InputError, WorkflowLoadError, WorkflowNotFoundError
from orchestrator.workflow import Workflow, WorkflowEntry, list_workflows, load_workflow

REPOSITORY = Path(__file__).resolve().parent.parent
GRAPH = """
from typing import TypedDict
from langgraph.graph import START, StateGraph

class State(TypedDict):
    text: str

async def echo(state: State):
    return {"text": state["text"] + NAME}

NAME = "!"
builder = StateGraph(State).add_node("echo", echo).add_edge(START, "echo")
graph = builder.compile()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory; what a load leaves in `sys` is undone."""
    (tmp_path / "workflows").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    modules = dict(sys.modules)
    yield tmp_path
    for name in [name for name in sys.modules if name not in modules]:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")) or name.startswith("orchestrator_workflows"):
            del sys.modules[name]
    sys.modules.update({name: module for name, module in modules.items() if name.partition(".")[0] == "agents"})


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(spec: str, **options: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        load_workflow(spec, **options)
    assert caught.value.exit_code == 2
    return caught.value


async def load(spec: str) -> Workflow:
    """Loading reads files: off the event loop."""
    return await asyncio.to_thread(load_workflow, spec)


async def say(workflow: Workflow, text: str) -> str:
    return str((await workflow.compile().ainvoke({"text": text}))["text"])


# Finding it


def test_the_shipped_workflows_and_those_of_the_folder_are_listed_without_importing(folder: Path) -> None:
    write(folder, "workflows/mine.py", '"""My own\n\nMore."""\nfrom somewhere import graph\nraise RuntimeError("imported")')
    write(folder, "workflows/wordcount.py", '"""Mine goes before the shipped one."""\nworkflow = 1')
    write(folder, "workflows/broken.py", "def f(:")
    write(folder, "workflows/binary.py", "a = '\0'")
    write(folder, "workflows/_private.py", "")
    write(folder, "workflows/__init__.py", "")
    write(folder, "workflows/notes.txt", "")
    write(folder, "workflows/helping.py", '"""No workflow."""\nPATTERN = "\\d"')
    write(folder, "app/flow.py", '"""From langgraph.json."""\nif True:\n    graph = None')
    write(
        folder, "langgraph.json", '{"graphs": {"served": "./app/flow.py:graph", "mine": "./app/flow.py:graph", "dotted": "app.flow:graph"}}'
    )
    entries = {entry.name: entry for entry in list_workflows(folder)}
    own = folder / "workflows"
    assert sorted(entries) == list(entries)
    assert {name: entry for name, entry in entries.items() if folder in entry.path.parents} == {
        "binary": WorkflowEntry("binary", own / "binary.py", remark=entries["binary"].remark),
        "broken": WorkflowEntry("broken", own / "broken.py", remark="syntax error at line 1: invalid syntax"),
        "dotted": WorkflowEntry("dotted", folder / "langgraph.json", "app.flow:graph"),
        "helping": WorkflowEntry("helping", own / "helping.py", remark="defines no `workflow`"),
        "mine": WorkflowEntry("mine", own / "mine.py", "My own"),
        "served": WorkflowEntry("served", folder / "app/flow.py", "From langgraph.json."),
        "wordcount": WorkflowEntry("wordcount", own / "wordcount.py", "Mine goes before the shipped one."),
    }
    assert entries["binary"].remark
    assert entries["research"].path == REPOSITORY / "workflows/research.py"


def test_listing_imports_neither_langgraph_nor_pydantic() -> None:
    code = (
        "import sys; from orchestrator.workflow import list_workflows; assert list_workflows(); "
        "print([name for name in ('langgraph', 'langchain_core', 'pydantic', 'workflows') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


@pytest.mark.parametrize(
    "spec",
    ["", "../secret", "a/b", "/etc/passwd", "-x", "--help", "a\0b", "a\nb", "x" * 10_000, "..", "a..b", "a b", "wörkflow/", "x\x1b[2J.py"],
)
def test_what_is_no_name_is_never_looked_up(spec: str, folder: Path) -> None:
    write(folder, "secret.py", "raise SystemExit")
    error = refused(spec)
    assert "is not a valid workflow name" in error.what
    assert len(error.what) < 150
    assert type(error) is InputError


def test_an_unknown_name_gets_the_nearest_and_where_it_was_sought(folder: Path) -> None:
    error = refused("wordcuont")
    assert type(error) is WorkflowNotFoundError
    assert error.lines()[:2] == ["No workflow 'wordcuont'. Did you mean 'wordcount'?", "Searched: workflows/, the shipped workflows"]
    assert refused("zzz").what == "No workflow 'zzz'"
    assert refused("_private").what == "No workflow '_private'"
    assert refused("nowhere/x.py").what == "No file 'nowhere/x.py'"


async def test_a_workflow_is_found_by_name_file_attribute_and_dotted_module(folder: Path) -> None:
    path = write(folder, "workflows/mine.py", '"""Say it louder.\n\nMore."""\n' + GRAPH)
    write(folder, "package/__init__.py", "")
    write(folder, "package/flow.py", GRAPH.replace('"!"', '"?"'))
    mine = await load("mine")
    assert (mine.name, mine.description, mine.path, mine.notes) == ("mine", "Say it louder.", path, ())
    assert await say(mine, "a") == "a!"
    assert await say(await load("workflows/mine.py"), "a") == "a!"
    assert await say(await load(str(path) + ":builder"), "a") == "a!"
    assert await say(await load("package.flow"), "a") == "a?"
    assert (await load("package.flow:graph")).name == "flow"


async def test_a_workflow_object_keeps_what_it_says_of_itself(folder: Path) -> None:
    text = "from orchestrator.workflow import Workflow\nfrom orchestrator.controls import Controls\n"
    write(
        folder,
        "workflows/mine.py",
        text + GRAPH + 'workflow = Workflow(graph, name="own", description="Mine.", controls=Controls(max_branches=3), notes=("said",))',
    )
    workflow = await load("mine")
    assert (workflow.name, workflow.description, workflow.notes) == ("own", "Mine.", ("said",))
    assert workflow.controls.max_branches == 3


async def test_langgraph_json_names_graphs_of_any_kind(folder: Path) -> None:
    write(folder, "app/flow.py", GRAPH + "\ndef make():\n    return builder\n\ndef configured(config):\n    return graph\n")
    write(
        folder,
        "langgraph.json",
        '{"dependencies": ["."], "graphs": {"served": "./app/flow.py:graph", "made": {"path": "./app/flow.py:make", "description": "x"},'
        ' "dotted": "app.flow:graph", "configured": "./app/flow.py:configured", "my graph": "./app/flow.py:graph"}}',
    )
    assert [await say(await load(name), "a") for name in ("served", "made", "dotted")] == ["a!"] * 3
    assert (await asyncio.to_thread(refused, "configured")).what == ("app/flow.py: `configured` is no plain function without arguments")
    write(folder, "app/failing.py", "def make():\n    return 1 / 0\n")
    error = await asyncio.to_thread(refused, "app/failing.py:make")
    assert (error.what, error.where) == ("app/failing.py cannot be imported: ZeroDivisionError: division by zero", "app/failing.py:2")
    assert "is not a valid workflow name" in (await asyncio.to_thread(refused, "my graph")).what


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("{", "langgraph.json is not valid JSON", "langgraph.json:1:2"),
        ("[]", "langgraph.json has no object 'graphs'", "langgraph.json"),
        ('{"graphs": {"a": "flow.py"}}', "graph 'a' is not 'path.py:attribute'", "langgraph.json"),
    ],
)
def test_a_broken_langgraph_json_is_named_and_hides_no_workflow(folder: Path, text: str, what: str, where: str) -> None:
    write(folder, "langgraph.json", text)
    write(folder, "workflows/mine.py", GRAPH)
    error = refused("served")
    assert error.what.startswith(what)
    assert error.where == where
    assert load_workflow("mine").name == "mine"
    assert "mine" in [entry.name for entry in list_workflows(folder)]


def test_the_langgraph_json_of_this_project_names_what_is_shipped() -> None:
    assert load_workflow("workflows/wordcount.py:graph", folder=REPOSITORY).name == "wordcount"
    assert load_workflow("workflows/research.py:graph", folder=REPOSITORY).input_model.model_fields["question"].is_required()


# Importing it


@pytest.mark.parametrize(
    ("text", "what", "where", "remedy"),
    [
        (
            "x = 1\nx.foo",
            "workflows/bad.py cannot be imported: AttributeError: 'int' object has no attribute 'foo'",
            "workflows/bad.py:2",
            "",
        ),
        ("def f(:\n", "workflows/bad.py cannot be imported: SyntaxError: invalid syntax (bad.py, line 1)", "workflows/bad.py:1", ""),
        (
            "import json\n\nimport not_there_at_all\n",
            "workflows/bad.py cannot be imported: ModuleNotFoundError: No module named 'not_there_at_all'",
            "workflows/bad.py:3",
            "Install what provides 'not_there_at_all'",
        ),
        ("import json\njson.loads('{')\n", "workflows/bad.py cannot be imported: JSONDecodeError", "workflows/bad.py:2", ""),
        (
            "import sys\nsys.exit(3)\n",
            "workflows/bad.py ends the program when it is imported (sys.exit)",
            "workflows/bad.py:2",
            "Put it under",
        ),
        ("import sibling\n", "workflows/bad.py cannot be imported: ValueError: from the sibling", "workflows/sibling.py:2", ""),
        (
            "while True:\n    try:\n        pass\n    except Exception:\n        pass\n",
            "workflows/bad.py took longer than 0.2 s to import",
            "workflows/bad.py:",
            "Move slow work into the nodes",
        ),
    ],
)
def test_what_fails_at_import_points_at_the_users_line(folder: Path, text: str, what: str, where: str, remedy: str) -> None:
    write(folder, "workflows/bad.py", text)
    write(folder, "workflows/sibling.py", "\nraise ValueError('from the sibling')")
    error = refused("bad", limit=0.2 if "while" in text else 30)
    assert type(error) is WorkflowLoadError
    assert error.what.startswith(what)
    assert error.where.startswith(where)
    assert error.remedy.startswith(remedy)
    assert "orchestrator_workflows.bad" not in sys.modules


def test_an_error_of_ours_in_a_module_stays_what_it_is_and_says_where(folder: Path) -> None:
    write(folder, "workflows/bad.py", "from orchestrator.workflow import Workflow\nworkflow = Workflow(3)")
    assert refused("bad").lines() == [
        "A Workflow takes a StateGraph or a compiled one, not int",
        "workflows/bad.py:2",
        "Write `workflow = Workflow(graph)` with a StateGraph, compiled or not",
    ]


def test_a_module_that_is_interrupted_is_interrupted(folder: Path) -> None:
    write(folder, "workflows/bad.py", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_workflow("bad")


def test_a_module_without_a_workflow_says_what_it_has(folder: Path) -> None:
    write(folder, "workflows/bad.py", "import json\n" + GRAPH.replace("graph =", "compiled ="))
    assert refused("bad").lines() == [
        "workflows/bad.py defines no `workflow`; "
        "found: State (class), echo (function), builder (StateGraph), compiled (CompiledStateGraph)",
        "Write `workflow = Workflow(graph)`, or name the graph's variable: FILE.py:VARIABLE",
    ]
    write(folder, "workflows/wrong.py", "workflow = 3")
    assert refused("wrong").what == "workflows/wrong.py: `workflow` is int, not a Workflow or a graph"
    write(folder, "workflows/empty.py", "")
    assert refused("empty").what == "workflows/empty.py defines no `workflow`; found: nothing"


def test_a_graph_that_cannot_work_is_refused_at_load_and_a_synchronous_node_noted(folder: Path) -> None:
    broken = GRAPH.replace('START, "echo")', 'START, "ecko")')
    write(folder, "workflows/worse.py", broken)
    assert (refused("worse").what, refused("worse").where) == (
        "workflows/worse.py cannot be imported: ValueError: Found edge ending at unknown node `ecko`",
        "workflows/worse.py:13",
    )
    write(folder, "workflows/bad.py", broken.replace("builder.compile()", "builder"))
    with pytest.raises(GraphError) as caught:
        load_workflow("bad")
    assert caught.value.problems == ["the edge '__start__' -> 'ecko' names no node: there is no 'ecko'. Did you mean 'echo'?"]
    assert caught.value.where == "workflows/bad.py"
    write(folder, "workflows/slow.py", GRAPH.replace("async def", "def"))
    assert load_workflow("slow").notes == ("node 'echo' is synchronous: it runs in a thread and cannot be cancelled",)


async def test_a_module_of_the_name_of_a_standard_one_is_loaded_by_path_and_said(folder: Path) -> None:
    import json

    write(folder, "workflows/json.py", GRAPH)
    write(folder, "workflows/other.py", "import json\njson.loads('1')\n" + GRAPH)
    workflow = await load("json")
    assert workflow.notes == (
        "workflows/json.py has the name of a standard library module: it is loaded by its path, `import json` is not it",
    )
    assert await say(workflow, "a") == "a!"
    assert await say(await load("other"), "a") == "a!"
    assert sys.modules["json"] is json


def test_a_file_that_others_can_change_is_noted(folder: Path) -> None:
    path = write(folder, "workflows/mine.py", GRAPH)
    path.chmod(0o666)
    assert load_workflow("mine").notes == (
        "workflows/mine.py can be changed by every user of this machine: running a workflow runs its code",
    )
    if os.getuid() == 0:
        path.chmod(0o644)
        os.chown(path, 12345, 12345)
        assert load_workflow("mine").notes == ("workflows/mine.py belongs to another user: running a workflow runs its code",)


async def test_files_of_one_name_stay_apart_and_a_changed_one_is_read_again(folder: Path) -> None:
    write(folder, "a/flow.py", GRAPH.replace('"!"', '"a"'))
    path = write(folder, "b/flow.py", GRAPH.replace('"!"', '"b"'))
    first, second = await load("a/flow.py"), await load("b/flow.py")
    assert [await say(first, ""), await say(second, "")] == ["a", "b"]
    assert (await load("b/flow.py")).graph is second.graph
    path.write_text(
        "KEY = 'text'\n" + GRAPH.replace('"!"', '"changed"').replace('{"text":', "{KEY:").replace("state):", "state):\n    # longer")
    )
    assert await say(await load("b/flow.py"), "") == "changed"


def test_types_of_a_module_can_be_pickled_and_their_hints_resolved(folder: Path) -> None:
    write(
        folder,
        "workflows/mine.py",
        "from __future__ import annotations\nfrom dataclasses import dataclass\n" + GRAPH + "@dataclass\nclass Thing:\n    of: State\n",
    )
    load_workflow("mine")
    thing = sys.modules["orchestrator_workflows.mine"].Thing
    assert get_type_hints(thing)["of"].__name__ == "State"
    assert pickle.loads(pickle.dumps(thing(of={"text": "a"}))) == thing(of={"text": "a"})  # noqa: S301 - its own pickle


async def test_a_module_imports_its_siblings_and_what_lies_in_the_folder(folder: Path) -> None:
    write(folder, "workflows/near.py", "A = 'a'")
    write(folder, "shared_names/__init__.py", "B = 'b'")
    write(
        folder,
        "workflows/mine.py",
        "from near import A\nfrom .near import A as C\nfrom shared_names import B\n" + GRAPH.replace('"!"', "A + B + C"),
    )
    assert await say(await load("mine"), "") == "aba"


def test_a_load_off_the_main_thread_works_without_the_clock(folder: Path) -> None:
    write(folder, "workflows/mine.py", GRAPH)

    async def load() -> Workflow:
        return await asyncio.to_thread(load_workflow, "mine")

    with asyncio.Runner() as runner:
        assert runner.run(load()).name == "mine"


AGENTS_OF_ANOTHER = "class Agent: ...\ndef create_planner(): raise RuntimeError('not ours')\n"


def test_a_shipped_module_gets_our_agents_and_the_users_module_its_own(folder: Path) -> None:
    write(folder, "agents/__init__.py", AGENTS_OF_ANOTHER)
    write(folder, "workflows/mine.py", "from agents import Agent\n" + GRAPH)
    write(folder, "workflows/confused.py", "\nfrom agents import create_researcher\n" + GRAPH)
    code = (
        "from orchestrator.workflow import load_workflow\nfrom orchestrator.errors import InputError\nimport sys\n"
        "assert load_workflow('research').text_field == 'question'\n"
        "assert load_workflow('mine').name == 'mine'\n"
        "assert sys.modules['agents'].__file__.endswith(sys.argv[1])\n"
        "assert load_workflow('research').text_field == 'question'\n"
        "try:\n    load_workflow('confused')\nexcept InputError as error:\n    print(*error.lines(), sep='\\n')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", code, str(folder / "agents/__init__.py")]
    found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert found.stderr == ""
    assert found.stdout.splitlines() == [
        "workflows/confused.py cannot be imported: ImportError: cannot import name 'create_researcher' "
        f"from 'agents' ({folder}/agents/__init__.py)",
        "workflows/confused.py:2",
        f"`agents` is {folder}/agents/__init__.py here, not this project's package: the distribution openai-agents installs that name too, "
        "and so may a folder of yours",
    ]


def test_agents_that_the_program_imported_before_stay_its_own(folder: Path) -> None:
    write(folder, "agents/__init__.py", AGENTS_OF_ANOTHER)
    code = (
        "import agents\nfrom orchestrator.workflow import load_workflow\nload_workflow('research')\nimport sys\n"
        "assert sys.modules['agents'] is agents\nassert not [name for name in sys.modules if name.startswith('agents.')]"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    found = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (found.stderr, found.returncode) == ("", 0)
