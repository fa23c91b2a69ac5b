"""The requests behind one `ask`: the way of asking that the server takes, the checks on its answer, and repairs."""

import json
import logging
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_function
from pydantic import BaseModel, ValidationError

from orchestrator.errors import InvalidAnswerError, ModelCallError
from orchestrator.events import current_branch, tell
from orchestrator.journal import Request
from orchestrator.models.answers import explain, read_answer, validated
from orchestrator.models.ask import Answer
from orchestrator.models.call import Call
from orchestrator.models.failures import is_rejection
from orchestrator.models.recorded import answer_of, error_of, kept_answer, request_of
from orchestrator.models.sending import Query, Sender, bytes_of, without_retries
from orchestrator.terms import Terms

__all__ = ["Exchange", "TextExchange"]

T = TypeVar("T", bound=BaseModel)
Way = Literal["tools_required", "tools", "json_schema", "function_calling", "json_mode", "prompt", "plain"]

_log = logging.getLogger(__name__)
_REPAIRS = 2
_NAME = re.compile(r"[\w.-]{1,64}")
# Half of a surrogate pair, escaped in JSON.
_HALF = re.compile(r"(?<!\\)(?:\\\\)*(?:\\ud[89ab]..(?!\\ud[c-f])|(?<!\\ud[89ab]..)\\ud[c-f])", re.IGNORECASE)
_WITH_TOOLS: tuple[Way, ...] = ("tools_required", "tools")
_CALLING: tuple[Way, ...] = (*_WITH_TOOLS, "function_calling")
_OPENAI_WAYS: tuple[Way, ...] = ("json_schema", "function_calling", "json_mode", "prompt")
_OTHER_WAYS: tuple[Way, ...] = ("function_calling", "prompt")

# The way that last worked, by (host, model, what it is asked for): every further call starts with it.
_Key = tuple[str, str, Literal["tools", "schema", "text"]]
_worked: dict[_Key, Way] = {}


class Asked(NamedTuple):
    """A model as a run asks it in a role, found once; `model` is held so that its id stays its own.

    `bound`: it with a schema, by the way of asking, and the bytes that this adds to a request.
    """

    model: BaseChatModel
    quiet: BaseChatModel
    call: Call
    bound: "dict[tuple[type[BaseModel], Way], tuple[Runnable[Any, AIMessage], int]]"


class Exchange(Generic[T]):
    """One question to a model, with the requests it takes until the answer fits."""

    streams = False  # whether its pieces are told as they come, though no clock runs between them

    def __init__(self, model: BaseChatModel, schema: type[T] | None, tools: Sequence[BaseTool], role: str, terms: Terms) -> None:
        self._given = schema
        self._tools = tools
        self._terms = terms
        asked = terms.asked.get((id(model), role))
        if asked is None:
            asked = terms.asked[id(model), role] = Asked(model, without_retries(model), Call.of(model, role), {})
        self._asked, self._model, self._call = asked, asked.quiet, asked.call
        self._key: _Key = (self._call.host, self._call.model, self._kind())
        config: RunnableConfig = {"run_name": f"{role} model", "metadata": {"role": role}, "tags": [f"role:{role}"]}
        self._sender = Sender(self._model, self._call, terms, config, streams=self.streams and terms.heard)

    @property
    def _schema(self) -> type[T]:
        assert self._given is not None  # noqa: S101 - a text is asked for by the subclass, which never comes here
        return self._given

    def _kind(self) -> Literal["tools", "schema", "text"]:
        return "tools" if self._tools else "schema"

    def _ways(self) -> tuple[Way, ...]:
        return (*(_WITH_TOOLS if self._tools else ()), *(_OPENAI_WAYS if self._call.openai_like else _OTHER_WAYS))

    async def answer(self, messages: Sequence[BaseMessage]) -> Answer[T]:
        """An answer that fits, after at most two repairs. Raises a subclass of ModelCallError."""
        talk = list(messages)
        problem = ""
        for _ in range(_REPAIRS + 1):
            message = await self._request(talk)
            found = self._read(message)
            if isinstance(found, Answer):
                return found
            problem, replies = found
            talk += replies
            self._doubt(message)
        raise InvalidAnswerError(
            f"the answer does not fit {self._wanted} after {_REPAIRS} repairs: {self._call.shown(problem, 300)}",
            where=self._call.where,
            remedy="use a model that follows schemas",
        )

    async def _request(self, messages: list[BaseMessage]) -> AIMessage:
        """One answer, asked for in the way that worked last or in the first that the server takes."""
        key, ways = self._key, self._ways()
        request = request_of(self._call.model, self._call.role, self._given, self._tools, messages) if self._terms.journal else None
        recalled = await self._recalled(request, ways) if request else None
        if recalled is not None:
            return recalled
        start = ways.index(_worked[key]) if _worked.get(key) in ways else 0
        for way in ways[start:]:
            asked = _with_schema(messages, self._schema) if way in ("json_mode", "prompt") else messages
            try:
                query = Query(*self._way(way), asked, calling=way in _CALLING, request=request, way=way, last=way == ways[-1])
                message = await self._sender.send(query)
            except (ModelCallError, NotImplementedError) as error:
                if way != ways[-1] and is_rejection(error.__cause__ or error):
                    continue
                raise
            self._remember(key, way)
            return message
        raise AssertionError("the last way never continues")

    async def _recalled(self, request: Request, ways: Sequence[Way]) -> AIMessage | None:
        """What an earlier attempt of the run was answered; in a replay its failure is raised."""
        journal = self._terms.journal
        recalled = await journal.recall(request) if journal else None
        if recalled is None:
            return None
        if recalled.state != "ok":
            raise error_of(recalled)
        self._terms.ledger.repeat(self._call.role, current_branch())
        way = recalled.response.get("way")
        if way in ways:
            _worked.setdefault(self._key, way)
        return answer_of(recalled.response)

    def _doubt(self, message: AIMessage) -> None:
        """A server that answers prose where JSON was asked for takes no notice of how it was asked: the repair asks in the next way."""
        way = _worked.get(self._key)
        if way in ("json_schema", "json_mode") and "{" not in str(message.text):
            _worked[self._key] = _OPENAI_WAYS[_OPENAI_WAYS.index(way) + 1]

    def _remember(self, key: _Key, way: Way) -> None:
        if self._tools and way not in _WITH_TOOLS and _worked.get(key) != way:
            _log.warning("the %s takes no tools: it is asked without them", self._call.where)
        _worked[key] = way

    def _bound(self, way: Way) -> "Runnable[Any, AIMessage]":
        name = self._schema.__name__
        if way in _WITH_TOOLS:
            choice = {"tool_choice": "any"} if way == "tools_required" else {}
            return self._model.bind_tools([*self._tools, _tool(self._schema)], **choice)
        if way == "function_calling":
            return self._model.bind_tools([_tool(self._schema)], tool_choice=name)
        if way == "json_schema":
            return self._formatted({"type": "json_schema", "json_schema": _strict(self._schema)})
        return self._formatted({"type": "json_object"}) if way == "json_mode" else self._model

    def _way(self, way: Way) -> "tuple[Runnable[Any, AIMessage], int]":
        """The model as it is asked in a way, and the bytes that this adds to the messages."""
        known, key = self._asked.bound, (self._schema, way)
        if not self._tools and key in known:
            return known[key]
        bound = self._bound(way)
        found = bound, bytes_of(bound)
        if not self._tools:
            known[key] = found
        return found

    def _formatted(self, response_format: dict[str, Any]) -> "Runnable[Any, AIMessage]":
        if getattr(self._model, "use_responses_api", None):
            return self._model.bind(response_format=response_format)
        # In extra_body, because the SDK's own handling of response_format raises before the message, its finish_reason and
        # its usage can be seen, and parses every chunk of a stream a second time.
        own = getattr(self._model, "extra_body", None) or {}
        return self._model.bind(extra_body={**own, "response_format": response_format})

    def _read(self, message: AIMessage) -> Answer[T] | tuple[str, list[BaseMessage]]:
        """The answer in `message`, or what is wrong with it and the messages that tell the model."""
        if not message.tool_calls and not message.invalid_tool_calls:
            text = str(message.text)
            try:
                value = read_answer(text, self._schema)
            except ValueError as error:
                problem = explain(error)
                return problem, [AIMessage(text), HumanMessage(self._complaint(problem))]
            if "\\u" in text and _HALF.search(text):
                self._terms.warn(self._call.half_characters)
            return Answer(message, value)
        calls, wrong = self._calls(message)
        if wrong:
            return "; ".join(wrong.values()), _tool_replies(message, calls, wrong)
        if others := [call for call in calls if call["name"] != self._schema.__name__]:
            return Answer(_with_calls(message, others), None)
        try:
            return Answer(_with_calls(message, calls), validated(calls[-1]["args"], self._schema))
        except ValidationError as error:
            problem = explain(error)
            return problem, _tool_replies(message, calls, {call["id"]: self._complaint(problem) for call in calls})

    def _calls(self, message: AIMessage) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """Every call of `message` once, each with an id, and what is wrong with some of them, by id."""
        known = [*sorted({tool.name for tool in self._tools}), *([self._given.__name__] if self._given else [])]
        calls: dict[str, dict[str, Any]] = {}
        wrong: dict[str, str] = {}
        for index, call in enumerate([*message.tool_calls, *message.invalid_tool_calls]):
            number, name, args = call["id"] or f"call_{index}", call["name"] or "", call["args"]
            if number in calls:
                continue
            if not isinstance(args, dict):
                wrong[number] = (
                    f"the arguments of {self._call.shown(name, 80) or 'a call'} are not a JSON object: {self._call.shown(str(args))}"
                )
            elif name not in known:
                shown = self._call.shown(name, 80)
                tell("log", level="warning", message=f"policy_denied {shown}: it is not among the tools that were offered")
                # A name that is none is not repeated: it may be a tag, and a text may have asked for it.
                wrong[number] = (
                    f"there is no tool {f'{shown!r}' if _NAME.fullmatch(shown) else 'of this name'}, only {', '.join(known) or 'none'}"
                )
            usable = args if isinstance(args, dict) else {}
            calls[number] = {"name": name or "unknown", "args": usable, "id": number, "type": "tool_call"}
        return list(calls.values()), wrong

    @property
    def _wanted(self) -> str:
        return self._given.__name__ if self._given else "its tools"

    def _complaint(self, problem: str) -> str:
        ending = f"Call {self._schema.__name__} or another tool." if self._tools else "Give the whole answer again, as one JSON object."
        return f"That is no valid {self._schema.__name__}: {problem}. {ending}"


class TextExchange(Exchange[BaseModel]):
    """One question to a model, answered in its own words or by calls of tools; its text is told as it comes."""

    streams = True

    def __init__(self, model: BaseChatModel, tools: Sequence[BaseTool], role: str, terms: Terms) -> None:
        super().__init__(model, None, tools, role, terms)

    def _kind(self) -> Literal["tools", "schema", "text"]:
        return "text" if self._tools else "schema"

    def _ways(self) -> tuple[Way, ...]:
        return ("tools", "plain") if self._tools else ("plain",)

    def _way(self, way: Way) -> "tuple[Runnable[Any, AIMessage], int]":
        bound = self._model.bind_tools([*self._tools]) if way == "tools" else self._model
        return bound, bytes_of(bound)

    def _remember(self, key: _Key, way: Way) -> None:
        if self._tools:
            if way == "plain":
                self._terms.warn(f"the {self._call.where} takes no tools: it is asked without them")
            _worked[key] = way

    def _doubt(self, message: AIMessage) -> None:
        """There is no other way to ask for a text."""

    def _read(self, message: AIMessage) -> Answer[BaseModel] | tuple[str, list[BaseMessage]]:
        calls, wrong = self._calls(message)
        if wrong:
            return "; ".join(wrong.values()), _tool_replies(message, calls, wrong)
        # As the journal would give it again: the message itself is the answer, and a resumed run or a replay has the same one.
        return Answer(answer_of(kept_answer(_with_calls(message, calls))), None)


@lru_cache(maxsize=256)
def _strict(schema: type[BaseModel]) -> dict[str, Any]:
    parameters = convert_to_openai_function(schema, strict=True)["parameters"]
    return {"name": schema.__name__, "schema": _without_defaults(parameters), "strict": True}


@lru_cache(maxsize=256)
def _tool(schema: type[BaseModel]) -> dict[str, Any]:
    function = {**convert_to_openai_function(schema), "name": schema.__name__}
    return {"type": "function", "function": {"description": f"Give the answer as {schema.__name__}.", **function}}


def _without_defaults(schema: Any) -> Any:
    """A JSON schema as strict mode takes it, where every field is required and a default is an error."""
    if isinstance(schema, list):
        return [_without_defaults(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    named = {key: {name: _without_defaults(item) for name, item in schema[key].items()} for key in ("properties", "$defs") if key in schema}
    return {key: _without_defaults(value) for key, value in schema.items() if key != "default" and key not in named} | named


def _with_schema(messages: list[BaseMessage], schema: type[BaseModel]) -> list[BaseMessage]:
    """`messages` with the schema written into the system message; templates of small models take one, and take it first."""
    order = (
        f"Answer with one JSON object and nothing else. It must fit the JSON schema {schema.__name__}:\n"
        f"{json.dumps(schema.model_json_schema(), ensure_ascii=False)}"
    )
    if messages and isinstance(messages[0], SystemMessage):
        return [SystemMessage(f"{messages[0].text}\n\n{order}"), *messages[1:]]
    return [SystemMessage(order), *messages]


def _with_calls(message: AIMessage, calls: list[dict[str, Any]]) -> AIMessage:
    """`message` with exactly `calls`; blocks of calls that are left out leave the content too."""
    kept = {call["id"] for call in calls}
    content = message.content
    if isinstance(content, list):
        content = [block for block in content if not (isinstance(block, dict) and _call_id(block) not in (None, *kept))]
    extra = {key: value for key, value in message.additional_kwargs.items() if key != "tool_calls"}
    return message.model_copy(update={"content": content, "tool_calls": calls, "invalid_tool_calls": [], "additional_kwargs": extra})


def _call_id(block: dict[str, Any]) -> str | None:
    return block.get("call_id") or block.get("id") if block.get("type") in ("tool_use", "tool_call", "function_call") else None


def _tool_replies(message: AIMessage, calls: list[dict[str, Any]], wrong: dict[str, str]) -> list[BaseMessage]:
    """`message` and a result for every call of it: an endpoint refuses a call without one."""
    spared = "Not done, because another call of the same message was wrong. Call it again if you still need it."
    results = [ToolMessage(wrong.get(call["id"], spared), tool_call_id=call["id"], name=call["name"], status="error") for call in calls]
    return [_with_calls(message, calls), *results]
