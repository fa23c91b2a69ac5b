"""Hedged requests on a server whose times are lognormal with sigma 1, over real HTTP: `python -m benchmarks.hedging`.

The server runs in a process of its own and draws its times from a seed. The same number of calls is made without and with
`controls.hedge`, alternately in rounds, so that both meet the machine in the same state. The first rounds of the hedged calls, until
20 requests were observed, are part of the figures.
"""

import argparse
import asyncio
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import NormalDist

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from orchestrator.controls import Controls
from orchestrator.models import ask
from orchestrator.models.connection import LazyClient, LoopClient
from orchestrator.terms import Terms

BAR = 2.0  # how many times better the 99th percentile is to get, at 10 % more requests
_BODY = json.dumps(
    {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": '{"text": "a"}'}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14},
    }
).encode()


class Note(BaseModel):
    """What is asked for."""

    text: str


async def serve(seed: int, median: float) -> None:
    """Answer every request after a lognormal time; the port is the first line of output, `GET` tells how many requests came."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    requests = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next((int(line[15:]) for line in head.decode().lower().split("\r\n") if line.startswith("content-length:")), 0)
                await reader.readexactly(length)
                body = str(requests).encode()
                if head.startswith(b"POST"):
                    requests += 1
                    body = _BODY
                    await asyncio.sleep(median * draw.lognormvariate(0, 1))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client went away: it does so where it needs no answer
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@asynccontextmanager
async def servers(seed: int, median: float, count: int) -> AsyncIterator[list[int]]:
    """Ports of servers in processes of their own, each with the same seed."""
    command = [sys.executable, "-m", "benchmarks.hedging", "--serve", "--seed", str(seed), "--median", str(median)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]  # noqa: ASYNC220 - this file
    try:
        yield [int(process.stdout.readline()) for process in processes if process.stdout]
    finally:
        for process in processes:
            process.terminate()
            process.wait()
            if process.stdout:
                process.stdout.close()


async def requests_of(port: int) -> int:
    """How many requests the server counted."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    count = int(await reader.read(20))
    writer.close()
    return count


async def round_of(model: ChatOpenAI, terms: Terms, calls: int, at_once: int) -> list[float]:
    """Seconds of each of `calls` calls, `at_once` of them in flight."""
    left = iter(range(calls))
    seconds: list[float] = []

    async def work() -> None:
        for _ in left:
            began = time.perf_counter()
            await ask(model, [HumanMessage("x")], Note, role="writer", terms=terms)
            seconds.append(time.perf_counter() - began)

    await asyncio.gather(*(work() for _ in range(at_once)))
    return seconds


def quantile(values: list[float], share: float) -> float:
    """The value that `share` of all are not above."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def theory(share: float) -> float:
    """How many times better one hedge of `share` of the requests makes the 99th percentile of independent lognormal times."""

    def above(seconds: float) -> float:
        return 1 - NormalDist().cdf(math.log(seconds)) if seconds > 0 else 1.0

    delay, plain = (math.exp(NormalDist().inv_cdf(1 - late)) for late in (share, 0.01))
    low, high = 0.0, plain
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if above(middle) * above(middle - delay) > 0.01 else (low, middle)
    return plain / high


async def measure(calls: int, rounds: int, at_once: int, seed: int, median: float) -> None:
    """Print both sides of the comparison."""
    async with servers(seed, median, 2) as ports:
        runs = [Terms(controls=Controls(hedge=hedge, max_concurrency=at_once * 2, max_agent_calls=100_000)) for hedge in ((), ("writer",))]
        models = [
            ChatOpenAI(
                model="m",
                base_url=f"http://127.0.0.1:{port}/v1",
                api_key=SecretStr("none"),
                max_retries=0,
                http_async_client=LoopClient(),
                http_client=LazyClient(),
            )
            for port in ports
        ]
        seconds: list[list[float]] = [[], []]
        for _ in range(rounds):
            for side in (0, 1):
                seconds[side] += await round_of(models[side], runs[side], calls // rounds, at_once)
        requests = [await requests_of(port) for port in ports]
    for name, side in (("plain", 0), ("hedged", 1)):
        p50, p99 = (quantile(seconds[side], share) for share in (0.5, 0.99))
        made = requests[side] / len(seconds[side])
        print(f"{name:7} calls {len(seconds[side])}  p50 {p50 * 1000:6.1f} ms  p99 {p99 * 1000:7.1f} ms  requests {made:.3f} a call")
    better = quantile(seconds[0], 0.99) / quantile(seconds[1], 0.99)
    more = requests[1] / len(seconds[1]) - 1
    print(f"p99 is {better:.2f} times better at {more:.1%} more requests")
    print(f"theory, one hedge of independent times: {theory(0.1):.2f} times at 10 %, {theory(0.05):.2f} times at 5 %")
    print(f"bar: {BAR} times at 10 %: {'met' if better >= BAR and more <= 0.1 else 'missed'}")


def main() -> None:
    """Serve or measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--median", type=float, default=0.3, help="seconds that the server takes in the middle")
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=20)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.seed, options.median))
    else:
        asyncio.run(measure(options.calls, options.rounds, options.at_once, options.seed, options.median))


if __name__ == "__main__":
    main()
