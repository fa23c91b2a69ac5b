"""What a model call costs in each framework: the same job against one local server, interleaved, each measurement in a fresh process.

python -m benchmarks.speed [--branches 100 1000] [--runs 1] [--rounds 3] [--peers wire langgraph orchestrator] [--short] [--write calls]
"""

import argparse
import json
import statistics

from benchmarks.speed.measuring import Bench
from benchmarks.speed.peers import PEERS
from benchmarks.speed.shown import PARTS, table, write_page

_LONG = 5.0  # seconds, in which a thousand branches have all sent their first request


def main() -> None:
    """Measure, print, and write the page where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--branches", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--runs", type=int, default=1, help="at the same time, each of so many branches")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="+", choices=[*PEERS], default=[*PEERS])
    parser.add_argument("--latency-ms", type=float, default=200)
    parser.add_argument("--waiting", action="store_true", help="answers take 5 s: what memory a branch needs while all of them wait")
    parser.add_argument("--limit", type=int, default=10_000, help="this project's max_concurrency")
    parser.add_argument("--stream", action="store_true", help="this project's answers come in 32 pieces")
    parser.add_argument("--read", action="store_true", help="this project's events are read, tokens too")
    parser.add_argument("--langsmith", action="store_true", help="beside this project's figures those with LangSmith on")
    parser.add_argument("--uvloop", action="store_true", help="beside the figures those on uvloop")
    parser.add_argument("--json", action="store_true", help="print every measurement as a line of JSON")
    parser.add_argument("--short", action="store_true", help="one round of 50 branches: whether it works, and about how much it costs")
    parser.add_argument("--write", choices=PARTS, help="write this table of docs/performance.md; with the first one the plot, too")
    options = parser.parse_args()
    if options.short:
        options.branches, options.rounds = [50], 1
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    bench = Bench(_LONG if options.waiting else options.latency_ms / 1000, waits=options.waiting)
    try:
        lines = _lines(options, bench)
        for _ in range(options.rounds):
            for branches in options.branches:
                for peer, environ in lines:
                    figures = bench.once(peer.partition(" ")[0], branches, options.runs, environ)
                    found.setdefault((peer, branches), []).append(figures)
                    if options.json:
                        print(json.dumps({"peer": peer, "branches": branches, "runs": options.runs, **figures}), flush=True)
    finally:
        bench.close()
    medians = {key: {name: statistics.median(one[name] for one in each) for name in each[0]} for key, each in found.items()}
    print(table(medians, found))
    if options.write:
        write_page(options.write, medians, found, options.rounds)


def _lines(options: argparse.Namespace, bench: Bench) -> list[tuple[str, dict[str, str]]]:
    """What is measured in turn: a peer, and the environment that it has."""
    limit = {
        "SPEED_LIMIT": str(options.limit),
        "SPEED_STREAM": "yes" if options.stream else "",
        "SPEED_READ": "yes" if options.read else "",
    }
    lines = [(peer, limit) for peer in options.peers]
    if options.uvloop:
        lines += [(f"{peer} + uvloop", {**limit, "ORCHESTRATOR_EVENT_LOOP": "uvloop"}) for peer in options.peers]
    if options.langsmith:
        environ = {**limit, "LANGSMITH_TRACING": "true", "LANGSMITH_API_KEY": "none", "LANGSMITH_ENDPOINT": bench.langsmith()}
        lines += [(f"{peer} + LangSmith", environ) for peer in options.peers if peer != "wire"]
    return lines


if __name__ == "__main__":
    main()
