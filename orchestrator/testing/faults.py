"""Ways for an endpoint to go wrong, by name; scripts of them, a share of them, and limits on rates."""

import inspect
import json
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from pydantic import BaseModel

from orchestrator.testing.replies import Fault, Overlong, Reply, Responder, answer_for, as_reply

__all__ = ["FAULTS", "fault", "faulty", "mixed", "rate_limited"]

_TOO_LONG = "This model's maximum context length is 8192 tokens. However, your messages resulted in 9613 tokens."


Spoil = Callable[[dict[str, Any], Any], Any]  # a request's body and the right answer to what is answered instead


def _always(reply: Reply) -> Spoil:
    return lambda request, answer: reply


def _spoilt(name: Fault | Overlong) -> Spoil:
    return lambda request, answer: replace(as_reply(answer), fault=name)


def _tool_loop(request: dict[str, Any], answer: Any) -> Reply:
    """The same call of the first tool, however often it is answered."""
    return Reply(calls=[_first_tool(request) or ("search_documents", {"query": "the same again"})])


def _duplicate_calls(request: dict[str, Any], answer: Any) -> Any:
    """Two calls of a tool with one id, and the right answer once a tool has answered."""
    call = _first_tool(request)
    if call is None or any(message.get("role") == "tool" for message in request["messages"]):
        return answer
    return Reply(calls=[call, call], ids=["call_7", "call_7"])


def _surrogate(request: dict[str, Any], answer: Any) -> Any:
    """The right answer with half a surrogate pair at the end of its longest text."""
    reply = as_reply(answer)
    if reply.value is None:
        return replace(reply, text=f"{reply.text or ''}\ud800")
    value = reply.value.model_dump(mode="json") if isinstance(reply.value, BaseModel) else reply.value
    return replace(reply, value=_longest_text_marked(json.loads(json.dumps(value))))


FAULTS: Mapping[str, Spoil] = {
    **{name: _spoilt(name) for literal in (Fault, Overlong) for name in get_args(literal)},
    "429": _always(Reply.error(429, "slow down", code="rate_limit_exceeded")),
    "quota": _always(Reply.error(429, "You exceeded your current quota", code="insufficient_quota")),
    **{str(status): _always(Reply.error(status, "the server failed")) for status in (500, 502, 503)},
    "400": _always(Reply.error(400, "the request is not valid")),
    "401": _always(Reply.error(401, "Incorrect API key provided", code="invalid_api_key")),
    "403": _always(Reply.error(403, "your account may not use this model")),
    "404": _always(Reply.error(404, "The model `test-model` does not exist", code="model_not_found")),
    "context": _always(Reply.error(400, _TOO_LONG, code="context_length_exceeded")),
    "never_valid": _always(Reply(value={"nonsense": 1})),
    "unknown_tool": _always(Reply(calls=[("launch_rocket", {"to": "the moon"})])),
    "tool_loop": _tool_loop,
    "duplicate_calls": _duplicate_calls,
    "surrogate": _surrogate,
}


def fault(text: str, answers: Responder | None = None) -> Responder:
    """A responder that always fails in this way: a name of FAULTS, `429:ra=1` for one with Retry-After, `ok` for what `answers` says.

    Many faults spoil a right answer, which is what `answers` says. `delay` and `pause` may be set like `ra`: `eof:delay=0.1`.
    """
    name, _, options = text.strip().partition(":")
    settings = {key: value for key, _, value in (option.partition("=") for option in options.split(":") if option)}
    if (name != "ok" and name not in FAULTS) or not settings.keys() <= {"ra", "delay", "pause"}:
        raise ValueError(f"there is no fault {text!r}; they are ok, {', '.join(FAULTS)}, each with :ra=, :delay= or :pause= and seconds")

    async def respond(request: dict[str, Any]) -> Any:
        answer = answers(request) if answers is not None else "An answer."
        answer = await answer if inspect.isawaitable(answer) else answer
        spoilt = answer if name == "ok" else FAULTS[name](request, answer)
        return _with(spoilt, settings) if settings else spoilt

    return respond


def faulty(script: str, answers: Responder) -> Responder:
    """A fault for each request in turn, as in `ok*3,429:ra=1,drip*2`; afterwards `answers` alone."""
    steps: list[Responder] = []
    for step in script.split(","):
        name, _, times = step.partition("*")
        steps += [fault(name, answers)] * int(times or 1)
    left = iter(steps)
    return lambda request: next(left, answers)(request)


def mixed(answers: Responder, *, share: float = 0.1, seed: int, faults: Iterable[str] = tuple(FAULTS)) -> Responder:
    """`answers`, but this share of the requests meets one of `faults`; `seed` draws which."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    made = [fault(name, answers) for name in faults]
    return lambda request: (draw.choice(made) if draw.random() < share else answers)(request)


def rate_limited(
    answers: Responder,
    *,
    per_second: float = 20.0,
    burst: int | None = None,
    retry_after: float | None = None,
    kind: Literal["bucket", "window"] = "bucket",
) -> Responder:
    """`answers` to as many requests a second as are allowed, 429 to the others.

    A bucket fills steadily and holds `burst` requests, else a second's worth; a window lets `per_second` pass, and then none
    until the next second.
    """
    limit = _Bucket(per_second, float(burst or max(1, int(per_second)))) if kind == "bucket" else _Window(int(per_second))
    header = {} if retry_after is None else {"retry_after": f"{retry_after:g}"}
    return lambda request: (
        answers(request) if limit.takes(time.monotonic()) else Reply.error(429, "slow down", code="rate_limit_exceeded", **header)
    )


@dataclass
class _Bucket:
    per_second: float
    left: float
    at: float = 0.0

    def __post_init__(self) -> None:
        self.size = self.left

    def takes(self, now: float) -> bool:
        self.left, self.at = min(self.size, self.left + (now - self.at) * self.per_second), now
        taken = self.left >= 1
        self.left -= taken
        return taken


@dataclass
class _Window:
    per_second: int
    second: int = -1
    count: int = 0

    def takes(self, now: float) -> bool:
        if int(now) != self.second:
            self.second, self.count = int(now), 0
        self.count += 1
        return self.count <= self.per_second


def _with(answer: Any, settings: Mapping[str, str]) -> Reply:
    reply = as_reply(answer)
    headers = {**reply.headers, **({"retry-after": settings["ra"]} if "ra" in settings else {})}
    delay, pause = float(settings.get("delay", reply.delay)), float(settings.get("pause", reply.pause))
    return replace(reply, headers=headers, delay=delay, pause=pause)


def _first_tool(request: Mapping[str, Any]) -> tuple[str, dict[str, str]] | None:
    """A call of the first tool that the request offers beside its schema."""
    for tool in request.get("tools") or []:
        function = tool["function"]
        if function["name"] != answer_for(request):
            names = function.get("parameters", {}).get("properties", {})
            return function["name"], dict.fromkeys(names, "the same again")
    return None


def _longest_text_marked(value: Any) -> Any:
    """A JSON value whose longest text, the first of them, ends in half a surrogate pair."""
    longest = max(_texts(value), key=len, default=None)
    done = False

    def marked(part: Any) -> Any:
        nonlocal done
        if isinstance(part, dict):
            return {key: marked(item) for key, item in part.items()}
        if isinstance(part, list):
            return [marked(item) for item in part]
        if done or part != longest:
            return part
        done = True
        return f"{part}\ud800"

    return marked(value)


def _texts(value: Any) -> list[str]:
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return [value] if isinstance(value, str) else [text for part in parts for text in _texts(part)]
