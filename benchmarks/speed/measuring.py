"""Measurements: each in a process of its own, against a server that is shared."""

import asyncio
import gc
import multiprocessing
import os
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.speed.job import CALLS_IN_A_ROW, calls
from benchmarks.speed.peers import PEERS
from benchmarks.speed.server import serve
from orchestrator.process import loop_factory

__all__ = ["Bench", "measure"]

_WARM = 20  # branches of the run before the measured one


_SETTLED = 0.3  # seconds after which what sent the last request has ended


def _megabytes(name: str, process: int | str = "self") -> float:
    """VmRSS or VmHWM of a process."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    return 0.0


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


async def _measured(peer: str, base_url: str, branches: int, runs: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        async with PEERS[peer](base_url, Path(folder)) as job:
            await job(_WARM)
            gc.collect()
            before = _megabytes("VmRSS")
            _forget_peak()
            wall, cpu = time.perf_counter(), time.process_time()
            supported = await asyncio.gather(*(job(branches) for _ in range(runs)))
            took, used = time.perf_counter() - wall, time.process_time() - cpu
            expected = branches - (branches + 9) // 10
            if set(supported) != {expected}:
                raise RuntimeError(f"{peer} came to {supported[:3]} supported findings, and not to {expected}")
            peak = _megabytes("VmHWM")
            return {"wall": took, "cpu": used, "peak": peak, "before": before}


def measure(pipe: Connection, peer: str, base_url: str, branches: int, runs: int, environ: dict[str, str]) -> None:
    """One measurement, in a process of its own."""
    os.environ.update(environ)
    with asyncio.Runner(loop_factory=loop_factory() if environ.get("ORCHESTRATOR_EVENT_LOOP") == "uvloop" else None) as runner:
        pipe.send(runner.run(_measured(peer, base_url, branches, runs)))


class Bench:
    """The server and the measurements against it."""

    def __init__(self, seconds: float, *, waits: bool = False) -> None:
        self._seconds = seconds
        self.waits = waits
        self._context = multiprocessing.get_context("spawn")
        self._here, there = self._context.Pipe()
        self._server = self._context.Process(target=serve, args=(there, seconds))
        self._server.start()
        self._base_url: str = self._here.recv()
        self._ingestion: Connection | None = None

    def once(self, peer: str, branches: int, runs: int, environ: dict[str, str]) -> dict[str, float]:
        """Figures of one measurement."""
        self._stats()
        here, there = self._context.Pipe()
        process = self._context.Process(target=measure, args=(there, peer, self._base_url, branches, runs, environ))
        process.start()
        there.close()
        waiting = self._waiting(here, process.pid, branches * runs) if self.waits else 0.0
        try:
            found: dict[str, float] = here.recv()
        except EOFError:
            raise SystemExit(f"{peer} failed") from None
        finally:
            process.join()
        made, expected = self._stats()["calls"] - calls(_WARM), calls(branches) * runs
        if made != expected:
            raise SystemExit(f"{peer} made {made} calls, and not {expected}")
        return {
            "CPU ms a call": 1000 * found["cpu"] / expected,
            "wall / ideal": found["wall"] / (CALLS_IN_A_ROW * self._seconds),
            "KB a branch": 1024 * (found["peak"] - found["before"]) / (branches * runs),
            "KB waiting": max(0.0, 1024 * (waiting - found["before"]) / (branches * runs)),
            "peak MB": found["peak"],
            "runs/s": runs / found["wall"],
        }

    def _waiting(self, here: Connection, process: int | None, branches: int) -> float:
        """The megabytes of the process while each of its branches waits for an answer; 0 where they never did at once."""
        while not here.poll(0.01):
            if self._stats("now")["in_flight"] >= branches:
                time.sleep(_SETTLED)
                return _megabytes("VmRSS", process or 0)
        return 0.0

    def _stats(self, wanted: str = "stats") -> dict[str, int]:
        self._here.send(wanted)
        told: dict[str, int] = self._here.recv()
        return told

    def langsmith(self) -> str:
        """The address of a LangSmith that takes everything and keeps nothing."""
        from benchmarks.tracing import langsmith

        self._ingestion, there = self._context.Pipe()
        self._context.Process(target=langsmith, args=(there,), daemon=True).start()
        address: str = self._ingestion.recv()
        return address

    def close(self) -> None:
        """End the servers."""
        self._here.send("stop")
        self._server.join()
        if self._ingestion is not None:
            self._ingestion.send("stop")
            print("LangSmith received {requests:,} requests, {bytes:,} bytes".format(**self._ingestion.recv()))
