"""Start-up: commands that need no graph beside importing langgraph; start to first model call beside importing what it needs."""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from orchestrator.testing import agents_script, model_server

LIGHT = {"--help": ["--help"], "list": ["list"], "usage error": ["no-such-workflow"]}


def seconds(*arguments: str, environ: dict[str, str]) -> float:
    """Wall time of a Python process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=environ, capture_output=True, check=False)
    return time.perf_counter() - began


def to_first_call(folder: Path, environ: dict[str, str]) -> float:
    """Seconds from starting `research` against a local server to the first request there."""
    arrived: list[float] = []
    script = agents_script()

    def reply(request: dict[str, Any]) -> Any:
        arrived.append(time.perf_counter())
        return script(request)

    with model_server(reply) as server:
        began = time.perf_counter()
        command = [sys.executable, "-m", "orchestrator", "research", "What is said?", "--documents", str(folder), "--model", "openai:bench"]
        subprocess.run(command, env={**environ, **server.environ}, capture_output=True, check=True)
    return arrived[0] - began


def main() -> None:
    """Print the ratios of each round, interleaved, and their medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    ratios: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as home:
        compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(Path(home, "compiled"))}
        environ = {**os.environ, "ORCHESTRATOR_HOME": home, **compiled}
        folder = Path(home, "documents")
        folder.mkdir()
        (folder / "a.md").write_text("# A\n\nIt is said that one document is enough.\n", encoding="utf-8")
        to_first_call(folder, environ)  # compiled files and the index are warm from here on
        for _ in range(options.repeat):
            langgraph = seconds("-c", "import langgraph.graph", environ=environ)
            for name, arguments in LIGHT.items():
                ratios.setdefault(f"{name} / import langgraph.graph", []).append(
                    seconds("-m", "orchestrator", *arguments, environ=environ) / langgraph
                )
            needed = seconds("-c", "import langgraph.graph, langchain_openai", environ=environ)
            ratios.setdefault("first call / import langgraph.graph, langchain_openai", []).append(to_first_call(folder, environ) / needed)
    for name, found in ratios.items():
        print(f"{statistics.median(found):5.2f}  ({min(found):.2f} to {max(found):.2f})  {name}")


if __name__ == "__main__":
    main()
