"""Questions to a person: what a run asks, the short names that are typed, and what an answer may be."""

import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from orchestrator.errors import InputError
from orchestrator.schemas import misfit
from orchestrator.text import counted, one_line, printable

__all__ = [
    "Person",
    "Question",
    "accepted",
    "allows",
    "carried",
    "find",
    "given_to",
    "lines",
    "names",
    "node_question",
    "plan_question",
    "question",
    "question_of",
    "read_answers",
    "read_named",
    "still_open",
    "tool_question",
    "tools_question",
    "validate",
]

Person = Callable[[Sequence["Question"]], Awaitable[Mapping[str, Any]]]
"""Who is asked while a run goes on: gives answers by the question's id, and none to what is left for later."""

Kind = Literal["clarify", "plan", "tools", "custom"]

_NAME = 4  # hexadecimal digits of an id that its name shows, more where two pending questions begin alike
_LONGEST = 20_000  # characters of an answer in words
_SHOWN = 1_000  # characters of one text in a question's detail
_ALLOWED = "always "  # stands before the name of a tool, among the answers: no id has a space
_DECLINED = "declined "
_NAMED = re.compile(r"q-\w+|[0-9a-f]{32}")
_MOST = 200  # questions of an edited plan
_WORDS = {"y": "yes", "yes": "yes", "true": "yes", "n": "no", "no": "no", "false": "no", "always": "always", "a": "always"}
_TAKES = {
    "clarify": "an answer in your own words",
    "plan": "yes, no, or the plan as it should be: a JSON list of questions, or one question a line",
    "tools": "yes, no, or always: yes for every further call of these tools in this run",
}


class Question(BaseModel):
    """What a run waits for a person to say. `id` is a digest of whose question it is, its kind and all that it asks.

    The same question of the same branch has the same id in every process, and another plan or another tool call has another one,
    so that no answer is ever given to what the person did not see. `detail`: the plan's questions, or the tool calls
    ([{"tool", "arguments"}]). `native`: LangGraph's `interrupt()` asked it, and `id` is LangGraph's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    kind: Kind
    text: str
    detail: Any = None
    choices: tuple[str, ...] = ()
    branch: str | None = None
    default: str | None = None
    answer_schema: dict[str, Any] | None = None
    native: bool = False

    @property
    def takes(self) -> str:
        """What an answer may be, in words."""
        if self.kind == "clarify" and self.choices:
            return f"one of {', '.join(self.choices)}, its number, or an answer in your own words"
        if self.kind == "custom":
            return f"JSON of the schema {one_line(json.dumps(self.answer_schema), 300)}" if self.answer_schema else "a text, or JSON"
        return _TAKES[self.kind]


def question(
    kind: Kind,
    text: str,
    *,
    detail: Any = None,
    choices: Sequence[str] = (),
    branch: str | None = None,
    default: str | None = None,
    answer_schema: dict[str, Any] | None = None,
) -> Question:
    """A question with its id, for the branch of a task. Long texts in `detail` are cut, and the id is that of the whole."""
    asked = json.dumps([branch, kind, text, detail, list(choices)], sort_keys=True, default=str, ensure_ascii=False)
    detail = _shortened(_json(detail))
    return Question(
        id=hashlib.sha256(asked.encode(errors="surrogatepass")).hexdigest()[:32],
        kind=kind,
        text=text,
        detail=detail,
        choices=tuple(choices),
        branch=branch,
        default=default,
        answer_schema=answer_schema,
    )


def plan_question(questions: Sequence[str], *, number: int) -> Question:
    """Whether the questions of a round are to be researched."""
    said = f"Research {counted(len(questions), 'question')}?" if number == 1 else f"Research {counted(len(questions), 'more question')}?"
    return question("plan", said, detail=list(questions), choices=("yes", "no"))


def tools_question(calls: Sequence[tuple[str, Mapping[str, Any]]], *, branch: str | None) -> Question:
    """Whether these calls (name of the tool, arguments) may be made."""
    said = "Make this tool call?" if len(calls) == 1 else f"Make these {len(calls)} tool calls?"
    detail = [{"tool": name, "arguments": dict(arguments)} for name, arguments in calls]
    return question("tools", said, detail=detail, choices=("yes", "no", "always"), branch=branch)


def tool_question(
    tool: str, arguments: Mapping[str, Any], value: Any, schema: dict[str, Any] | None, *, number: int, branch: str | None
) -> Question:
    """What a tool asks by LangGraph's `interrupt()`, for the `number`-th time in one call of it."""
    asked = question_of("", value, schema)
    told = {"asks": asked.detail} if asked.detail is not None else {}
    again = {"number": number} if number > 1 else {}
    detail = {"tool": tool, "arguments": dict(arguments), **told, **again}
    return question("custom", asked.text, detail=detail, branch=branch, answer_schema=schema)


def node_question(node: str, value: Any, schema: dict[str, Any] | None, *, number: int, branch: str | None) -> Question:
    """What a node of an agent asks by LangGraph's `interrupt()`, for the `number`-th time."""
    asked = question_of("", value, schema)
    told = {"asks": asked.detail} if asked.detail is not None else {}
    again = {"number": number} if number > 1 else {}
    return question("custom", asked.text, detail={"node": node, **told, **again}, branch=branch, answer_schema=schema)


def question_of(id: str, value: Any, answer_schema: dict[str, Any] | None = None) -> Question:
    """The question that an interrupt of this `id` asks: ours as it was, any other value of a user's graph as a custom question."""
    if isinstance(value, Mapping) and value.get("id") == id and set(value) == set(Question.model_fields):
        return Question.model_validate(dict(value))
    text = (
        value
        if isinstance(value, str)
        else next((value[key] for key in _SAYING if isinstance(value, Mapping) and _is_said(value, key)), "")
    )
    detail = None if isinstance(value, str) else _json(value)
    return Question(
        id=id, kind="custom", text=text or "the graph waits for an answer", detail=detail, answer_schema=answer_schema, native=True
    )


_SAYING = ("question", "text", "message", "prompt", "description")  # where the values of users' interrupts say what is asked


def _is_said(value: Mapping[Any, Any], key: str) -> bool:
    return isinstance(value.get(key), str) and bool(value[key].strip())


def _json(value: Any) -> Any:
    """A value as JSON holds it; what JSON has no word for, as text."""
    return json.loads(json.dumps(value, default=lambda odd: odd.model_dump(mode="json") if isinstance(odd, BaseModel) else str(odd)))


def _shortened(value: Any) -> Any:
    """JSON for a person to read: what is cut of a long text is counted."""
    if isinstance(value, str) and len(value) > _SHOWN:
        return f"{value[:_SHOWN]}… ({len(value) - _SHOWN:,} more characters)"
    if isinstance(value, Mapping):
        return {str(key): _shortened(item) for key, item in value.items()}
    return [_shortened(item) for item in value] if isinstance(value, list) else value


def accepted(asked: Question, value: Any) -> dict[str, Any]:
    """What a run keeps of a valid answer: the value by the question's id, and each tool that was allowed for good.

    A plan that was declined ends the run, and is no answer for who resumes it: it has another key, which `carried` leaves out.
    """
    if asked.kind == "plan" and value == "no":
        return {_DECLINED + asked.id: value}
    tools = _tools(asked) if asked.kind == "tools" and value == "always" else ()
    return {asked.id: value, **{_ALLOWED + tool: "always" for tool in tools}}


def carried(answers: Mapping[str, Any]) -> dict[str, Any]:
    """Of the answers that a run has, those that hold when it is resumed."""
    return {key: value for key, value in answers.items() if not key.startswith(_DECLINED)}


def given_to(asked: Question, answers: Mapping[str, Any]) -> Any:
    """The value of the answer to a question among those that a run has; None where there is none."""
    kept = answers.get(asked.id, answers.get(_DECLINED + asked.id))
    return None if kept is None else validate(asked, kept)


def allows(answers: Mapping[str, Any], tool: str) -> bool:
    """Whether a person said `always` of this tool."""
    return _ALLOWED + tool in answers


def still_open(questions: Iterable[Question], answers: Mapping[str, Any]) -> list[Question]:
    """Those without an answer; calls of tools that were meanwhile allowed for good need none."""
    return [
        asked
        for asked in questions
        if asked.id not in answers and not (asked.kind == "tools" and all(allows(answers, tool) for tool in _tools(asked)))
    ]


def _tools(asked: Question) -> list[str]:
    return list(dict.fromkeys(str(call["tool"]) for call in asked.detail or ()))


def read_answers(questions: Sequence[Question], given: Sequence[str]) -> dict[str, Any]:
    """The words of `--answer TEXT` or `--answer NAME=TEXT` as what a run keeps; all are checked before anything is kept.

    Raises InputError: for a bare answer where several questions are pending, for a name that none has, for an answer that does not fit.
    """
    answers: dict[str, Any] = {}
    seen: set[str] = set()
    for word in given:
        asked, text = _addressed(questions, word)
        if asked.id in seen:
            raise InputError(f"question {names(questions)[asked.id]} is answered twice", remedy="give one answer to each")
        seen.add(asked.id)
        answers |= accepted(asked, validate(asked, text))
    return answers


def read_named(questions: Sequence[Question], given: Mapping[str, Any]) -> dict[str, Any]:
    """Answers by the name or the id of their question as what a run keeps; raises InputError as `read_answers` does."""
    answers: dict[str, Any] = {}
    for name, answer in given.items():
        asked = find(questions, name)
        answers |= accepted(asked, validate(asked, answer))
    return answers


def _addressed(questions: Sequence[Question], word: str) -> tuple[Question, str]:
    """The question that an answer of the command line is for, and its text."""
    name, equals, text = word.partition("=")
    if equals and _NAMED.fullmatch(name.strip()):
        return find(questions, name), text
    if len(questions) == 1:
        return questions[0], word
    if not questions:
        raise InputError("the run asks nothing", remedy="leave --answer out")
    pending = "; ".join(f"{name}: {one_line(asked.text, 80)}" for asked, name in zip(questions, names(questions).values(), strict=True))
    what = f"{len(questions)} questions are pending, and the answer does not say which it is for"
    raise InputError(what, where=pending, remedy="write --answer NAME=TEXT, once for each")


def lines(asked: Question, name: str) -> list[str]:
    """A question for a person to read: its name, whose it is, what it asks and the detail; without what a terminal would obey."""
    whose = f" ({one_line(asked.branch, 20)})" if asked.branch else ""
    said = printable(asked.text)[:_LONGEST].splitlines() or [""]
    head = [f"{name}{whose}: {said[0]}", *(f"  {line}" for line in said[1:])]
    choices = (
        [f"  {number}. {one_line(choice, 200)}" for number, choice in enumerate(asked.choices, start=1)] if asked.kind == "clarify" else []
    )
    return [*head, *(f"  {line}" for line in _details(asked)), *choices]


def _details(asked: Question) -> list[str]:
    if asked.detail is None:
        return []
    if asked.kind == "plan":
        return [f"{number}. {one_line(text, 2_000)}" for number, text in enumerate(asked.detail, start=1)]
    if asked.kind == "tools":
        return [line for call in asked.detail for line in _call_lines(call)]
    told = asked.detail
    if isinstance(told, dict):
        told = {key: value for key, value in told.items() if key not in _SAYING or value != asked.text}
    return printable(json.dumps(told, ensure_ascii=False, indent=2))[:_LONGEST].splitlines() if told != {} else []


def _call_lines(call: Mapping[str, Any]) -> list[str]:
    shown = [
        (one_line(key, 60), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for key, value in call["arguments"].items()
    ]
    return [one_line(call["tool"], 80), *(f"  {key}: {one_line(value, _SHOWN + 40)}" for key, value in shown)]


def names(questions: Iterable[Question]) -> dict[str, str]:
    """The name of each pending question by its id: `q-3f2a`, longer where two begin alike."""
    ids = list(dict.fromkeys(asked.id for asked in questions))
    length = _NAME
    while length < 32 and len({id[:length] for id in ids}) < len(ids):
        length += 1
    return {id: f"q-{id[:length]}" for id in ids}


def find(questions: Sequence[Question], name: str) -> Question:
    """The pending question that `name` means: its name, more of its id, or all of it. Raises InputError, listing those that are pending."""
    wanted = name.strip().lower()
    digits = wanted.removeprefix("q-")
    found = [asked for asked in questions if asked.id.lower() == wanted or (len(digits) >= _NAME and asked.id.lower().startswith(digits))]
    if len({asked.id for asked in found}) == 1:
        return found[0]
    what = f"{one_line(name, 60)!r} is the name of more than one question" if found else f"no question {one_line(name, 60)!r} is pending"
    pending = ", ".join(names(questions).values())
    raise InputError(what, where=f"pending: {pending}" if pending else "no question is pending")


def validate(asked: Question, answer: Any) -> Any:
    """The value of an answer: of `clarify` a text, of `plan` "yes", "no" or a list of questions, of `tools` "yes", "no" or "always".

    Of a custom question it is any JSON value that fits its schema; a text that is JSON is read as such. Raises InputError.
    """
    if isinstance(answer, str):
        answer = answer.strip()
        if len(answer) > _LONGEST:
            raise _refused(asked, f"the answer is longer than {_LONGEST:,} characters")
        if not answer:
            raise _refused(asked, "the answer is empty")
    return _VALUES[asked.kind](asked, answer)


def _clarified(asked: Question, answer: Any) -> str:
    if not isinstance(answer, str):
        raise _refused(asked, f"the answer is {_kind_of(answer)}")
    if answer.isdecimal() and 1 <= int(answer[:6]) <= len(asked.choices):
        return asked.choices[int(answer[:6]) - 1]
    return next((choice for choice in asked.choices if choice.casefold() == answer.casefold()), answer)


def _planned(asked: Question, answer: Any) -> str | list[str]:
    word = _word(answer)
    if word in ("yes", "no"):
        return word
    if isinstance(answer, str):
        answer = _read_json(asked, answer) if answer.startswith("[") else answer.splitlines() if "\n" in answer else None
    if not isinstance(answer, list) or not all(isinstance(item, str) for item in answer):
        raise _refused(asked, "that is neither yes nor no nor a list of questions")
    questions = list(dict.fromkeys(" ".join(item.split()) for item in answer if item.strip()))
    if not 1 <= len(questions) <= _MOST:
        raise _refused(asked, "the list holds no question" if not questions else f"the list holds more than {_MOST} questions")
    return questions


def _approved(asked: Question, answer: Any) -> str:
    word = _word(answer)
    if word is None:
        raise _refused(asked, "that is neither yes nor no nor always")
    return word


def _custom(asked: Question, answer: Any) -> Any:
    value = answer
    if isinstance(answer, str) and (asked.answer_schema or {}).get("type") != "string":
        try:
            value = json.loads(answer)
        except ValueError:
            value = answer
    if asked.answer_schema is not None and (why := misfit(value, asked.answer_schema)):
        raise _refused(asked, why)
    return value


_VALUES = {"clarify": _clarified, "plan": _planned, "tools": _approved, "custom": _custom}


def _word(answer: Any) -> str | None:
    if isinstance(answer, bool):
        return "yes" if answer else "no"
    return _WORDS.get(answer.casefold().rstrip(".!")) if isinstance(answer, str) else None


def _read_json(asked: Question, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise _refused(asked, f"the list is not valid JSON: {error}") from None


def _kind_of(value: Any) -> str:
    kinds: dict[type, str] = {list: "a list", dict: "an object", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _refused(asked: Question, why: str) -> InputError:
    name = names([asked])[asked.id]
    return InputError(
        f"question {name} cannot be answered so: {why}", where=f"it asks: {one_line(asked.text, 200)}", remedy=f"answer with {asked.takes}"
    )
