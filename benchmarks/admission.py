"""What the door costs, and how calls fare behind it against servers that refuse.

    python -m benchmarks.admission [--seeds 20]

The first table is CPU time of enter and leave beside a plain asyncio.Semaphore; the second is simulated in virtual time: requests as a
ratio to calls, seconds as a ratio to the least that the server's limit allows, the worst of all seeds.
"""

import argparse
import asyncio
import math
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from orchestrator.admission import Admission, Party

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from throttling import LIMITS, Server, calls, never
from virtual import run

_CALLS = 20_000


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="simulations of each row")
    options = parser.parse_args()
    _cost()
    _refusals(options.seeds)


def _cost() -> None:
    print(f"{'CPU of a call, enter and leave':<44} {'ms':>8} {'x Semaphore':>12}")
    for waiting, parties in ((0, 1), (1_000, 1), (1_000, 10), (1_000, 1_000)):
        for rates in (False, True):
            plain = min(_cpu(_semaphore(), waiting) for _ in range(3))
            ours = min(_cpu(_door(parties, rates), waiting) for _ in range(3))
            label = f"{waiting} waiting, {parties} {'party' if parties == 1 else 'parties'}{', with rates' if rates else ''}"
            print(f"{label:<44} {ours * 1000:>8.4f} {ours / plain:>12.1f}")


def _semaphore() -> Callable[[int], Awaitable[None]]:
    semaphore = asyncio.Semaphore(64)

    async def call(_: int) -> None:
        async with semaphore:
            await asyncio.sleep(0)

    return call


def _door(parties: int, rates: bool) -> Callable[[int], Awaitable[None]]:
    admission = Admission()
    limits = {"requests_per_minute": 10_000_000, "tokens_per_minute": 10_000_000_000} if rates else {}
    runs = [Party(name=f"run {n}", **limits) for n in range(parties)]

    async def call(number: int) -> None:
        ticket = await admission.enter("api.test", runs[number % parties], tokens=1_000)
        await asyncio.sleep(0)
        ticket.leave(tokens=900)

    return call


def _cpu(call: Callable[[int], Awaitable[None]], waiting: int) -> float:
    """Seconds of CPU for a call, the task it runs in taken away."""

    async def work(worker: int, workers: int, body: Callable[[int], Awaitable[None]]) -> None:
        for number in range(worker, _CALLS, workers):
            await body(number)

    async def nothing(_: int) -> None:
        await asyncio.sleep(0)

    async def once(body: Callable[[int], Awaitable[None]]) -> float:
        workers = 64 + waiting if waiting else 1
        before = time.process_time()
        await asyncio.gather(*(work(worker, workers, body) for worker in range(workers)))
        return (time.process_time() - before) / _CALLS

    return max(1e-9, asyncio.run(once(call)) - asyncio.run(once(nothing)))


def _refusals(seeds: int) -> None:
    print(f"\n{'20 requests a second':<44} {'answered':>10} {'requests':>9} {'seconds':>8}")
    for count in (200, 402):
        for name, limit in LIMITS.items():
            for seconds in (0.05, 0.2, 2.0):
                for retry_after in (False, True):
                    label = f"{count} calls of {seconds:g} s, {name}{', Retry-After' if retry_after else ''}"
                    _row(label, lambda *given, limit=limit: Server(limit(), *given), seconds, retry_after, count, count / 20, seeds)
    for status, overloaded in (("503", True), ("429", False)):
        print(f"\n{'10 in flight, else ' + status:<44} {'answered':>10} {'requests':>9} {'seconds':>8}")
        for count, seconds in ((200, 0.05), (200, 0.2), (200, 2.0), (402, 0.05), (402, 0.2), (402, 2.0), (60, 30.0)):
            for retry_after in (False, True):
                label = f"{count} calls of {seconds:g} s{', Retry-After' if retry_after else ''}"
                ideal = math.ceil(count / 10) * seconds
                _row(label, partial(_crowded, overloaded), seconds, retry_after, count, ideal, seeds)
    outcome = run(calls(Server(never), 50))
    print(f"50 calls, everything refused: {outcome.requests} requests, {outcome.seconds:.1f} s")


def _crowded(overloaded: bool, seconds: float, retry_after: bool) -> Server:
    return Server(seconds=seconds, retry_after=retry_after, most=10, overloaded=overloaded)


def _row(label: str, make: Callable[..., Server], seconds: float, retry_after: bool, count: int, ideal: float, seeds: int) -> None:
    outcomes = [run(calls(make(seconds, retry_after), count, seed=seed)) for seed in range(seeds)]
    requests = max(outcome.requests for outcome in outcomes) / count
    slowest = max(outcome.seconds for outcome in outcomes) / ideal
    print(f"{label:<44} {min(outcome.answered for outcome in outcomes):>10} {requests:>8.2f}x {slowest:>7.2f}x")


if __name__ == "__main__":
    main()
