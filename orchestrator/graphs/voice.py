"""The voice graph: hear a question, answer it, speak the answer while it is still being written; with a microphone, again and again."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.tools import StructuredTool
from langgraph.errors import GraphBubbleUp, GraphInterrupt
from langgraph.graph import END, START, StateGraph, add_messages
from langgraph.runtime import Runtime
from pydantic import BaseModel, Field, model_validator
from typing_extensions import TypedDict

from orchestrator.asking import question_of
from orchestrator.clocks import Clock
from orchestrator.context import RunContext
from orchestrator.controls import Controls
from orchestrator.errors import CallTimeoutError, InputError, OrchestratorError, StopRequested, said
from orchestrator.events import overhearing, tell
from orchestrator.graphs.branches import Agent, call_agent, status_of
from orchestrator.speech import (
    HEARING_RATE,
    Listener,
    Microphone,
    Outlet,
    Sound,
    Spoken,
    Telling,
    Transcriber,
    check_loudspeaker,
    check_microphone,
    check_money,
    check_wav_target,
    open_loudspeaker,
    open_microphone,
    open_wav,
    read_wav,
    resolve_speaker,
    resolve_transcriber,
    say_all,
    spoken,
)
from orchestrator.state import Failure, Finding, Source
from orchestrator.text import one_line

__all__ = ["Answer", "VoiceInput", "VoiceOutput", "VoiceState", "create_voice"]

T = TypeVar("T")

_VOCABULARY = 100_000  # characters of the documents that the embedded recogniser learns its words from
_SPOKEN = 8  # findings: whoever listens cannot skip
_STAGES = {"hearing_timeout": "writing down what was said", "answer_timeout": "the answer"}
_TURNS = 100  # that a conversation has at most


class VoiceInput(BaseModel):
    """What is heard, and how it is answered. Times are seconds."""

    audio: str = Field(default="", description="a WAV file with the spoken question")
    microphone: bool = Field(default=False, description="listen to the microphone instead, and go on until nobody speaks any more")
    speech: str = Field(default="", description="the WAV file that the answer is written to, instead of the loudspeaker")
    documents: list[str] = Field(default=[], description="files, folders and globs to answer from; without them the model answers itself")
    tools: list[str] = Field(default=[], description="which tools the model may call; without it all that are configured")
    allow_hosts: list[str] = Field(default=[], description="hosts that tools which fetch may ask")
    transcriber: str = Field(default="pocketsphinx", description="pocketsphinx, or openai:MODEL for any /v1/audio/transcriptions")
    speaker: str = Field(default="espeak-ng", description="espeak-ng, or openai:MODEL for any /v1/audio/speech")
    voice: str = Field(default="", description="the speaker's voice, such as en-us or alloy")
    hearing_timeout: float = Field(default=60, gt=0, le=3600, description="seconds that writing down what was said may take")
    answer_timeout: float = Field(default=300, gt=0, le=86400, description="seconds that the answer may take")
    speaking_timeout: float = Field(default=30, gt=0, le=3600, description="seconds that making the sound of one sentence may take")
    patience: float = Field(default=20, gt=0, le=3600, description="seconds of silence at the microphone that end the conversation")
    barge_in: bool = Field(default=True, description="speech at the microphone interrupts the answer")

    @model_validator(mode="after")
    def _one_source(self) -> "VoiceInput":
        if bool(self.audio.strip()) == self.microphone:
            raise ValueError("give a recording or --microphone" + (", not both" if self.microphone else ""))
        if self.microphone and self.speech:
            raise ValueError("--speech takes the answer to a recording; a conversation at the microphone is heard")
        return self


class VoiceOutput(TypedDict):
    """What was heard and answered last, and what it rests on; `report` is the answer as text, or the whole conversation."""

    transcript: str
    report: str
    findings: list[Finding]
    gaps: list[str]
    sources: list[Source]


def extend(earlier: list[Failure], later: list[Failure]) -> list[Failure]:
    """Failures, in order."""
    return [*earlier, *later]


class VoiceState(VoiceOutput):
    """The graph's own state: its input, the conversation so far, and `pending`, what interrupted the answer and was not written down yet.

    It is 16-bit mono samples at 16 kHz.
    `asked`: a question about documents, and what its user was asked about it and will answer next. `over`: nobody speaks any more.
    """

    audio: str
    microphone: bool
    documents: list[str]
    tools: list[str]
    allow_hosts: list[str]
    transcriber: str
    speaker: str
    voice: str
    speech: str
    hearing_timeout: float
    answer_timeout: float
    speaking_timeout: float
    patience: float
    barge_in: bool
    messages: Annotated[list[AnyMessage], add_messages]
    pending: bytes
    asked: list[str]
    over: bool
    failures: Annotated[list[Failure], extend]


@dataclass
class Answer:
    """An answer, as text and, where it is from documents, with what it rests on."""

    text: str
    report: str
    findings: list[Finding] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)


def create_voice(
    talk: Agent,
    from_documents: Agent | StateGraph[Any, Any, Any, Any],
    *,
    microphone: Callable[[], Microphone] = open_microphone,
    loudspeaker: Callable[[], AbstractAsyncContextManager[Outlet]] = open_loudspeaker,
) -> StateGraph[Any, Any, Any, Any]:
    """A graph VoiceInput -> VoiceOutput, ready to compile.

    `talk` answers a conversation, and tells its text in `token` events of its own name as it comes: a tool loop. `from_documents` answers
    a question where documents are given: `question` and `documents` in; `report`, `findings`, `gaps` and `sources` out. `talk` is given
    `tools` and `allow_hosts`, too, where its state has them.
    """
    role = talk.name
    compiled = from_documents.compile(name="documents", checkpointer=False) if isinstance(from_documents, StateGraph) else from_documents

    async def ready(state: Mapping[str, Any], context: RunContext) -> tuple[Sound | None, Transcriber | None]:
        own = {"own_ear": microphone is open_microphone, "own_voice": loudspeaker is open_loudspeaker}
        return await _ready(given_of(state), context, role, **own)

    async def hear(state: VoiceState, runtime: Runtime[Any]) -> dict[str, Any]:
        return await _hear(state, RunContext.of(runtime), ready, microphone)

    async def answer(state: VoiceState, runtime: Runtime[Any]) -> dict[str, Any]:
        turn = _Turn(given_of(state), RunContext.of(runtime), talk, compiled, microphone, loudspeaker)
        return await turn.answer(state)

    graph = StateGraph(VoiceState, input_schema=VoiceInput, output_schema=VoiceOutput, context_schema=RunContext)
    graph.add_node("hear", hear, input_schema=VoiceState, metadata={"asks": 0, "check": ready})
    runs = {
        role: lambda given, _: int(not given.get("documents")),
        compiled.name: lambda given, _: int(bool(given.get("documents")) or not given),
    }
    graph.add_node("answer", answer, input_schema=VoiceState, metadata={"runs": runs, "visits": _turns_of})
    graph.add_edge(START, "hear")
    graph.add_conditional_edges("hear", after_hearing, ["hear", "answer", END])
    graph.add_conditional_edges("answer", after_answer, ["hear", END])
    return graph


def _turns_of(given: Mapping[str, Any], controls: Controls) -> int:
    """How many answers there are at most, as the input tells."""
    return 1 if given.get("audio") else _TURNS


def given_of(state: Mapping[str, Any]) -> VoiceInput:
    """The graph's input, as its state holds it."""
    return VoiceInput(**{key: state[key] for key in VoiceInput.model_fields if key in state})


async def after_hearing(state: VoiceState) -> str:
    """Somebody said something, or nobody does any more. Its name stands in traces."""
    return END if state.get("over") else "answer" if state["transcript"] else "hear"


async def after_answer(state: VoiceState) -> str:
    """At a microphone the next one speaks."""
    turns = sum(isinstance(message, HumanMessage) for message in state["messages"])
    return "hear" if state.get("microphone") and turns < _TURNS else END


async def _hear(
    state: VoiceState,
    context: RunContext,
    ready: Callable[[Mapping[str, Any], RunContext], Awaitable[tuple[Sound | None, Transcriber | None]]],
    microphone: Callable[[], Microphone],
) -> dict[str, Any]:
    given = given_of(state)
    recording, transcriber = await ready(state, context)
    pending = state.get("pending") or b""
    sound = recording or (Sound(pending, HEARING_RATE) if pending else await _listened(microphone, given.patience, context))
    if sound is None:  # nobody speaks any more
        return {"over": True, "transcript": state.get("transcript", ""), "report": _conversation(state.get("messages", []))}
    words = await (await context.library(given.documents)).sample(_VOCABULARY) if given.documents else ""
    text = await _within(given.hearing_timeout, "hearing_timeout", transcribed(sound, words, given.transcriber, transcriber, context))
    tell("heard", text=text, seconds=round(sound.seconds, 3))
    if not text and not given.microphone:
        raise OrchestratorError(
            "no words were heard in the recording", where=given.audio, remedy="speak louder, or name another --transcriber"
        )
    return {"transcript": text, "pending": b""}


async def _ready(
    given: VoiceInput, context: RunContext, role: str, *, own_ear: bool, own_voice: bool
) -> tuple[Sound | None, Transcriber | None]:
    """The recording, and who writes down what is said in it; what was given is checked first, then what there is to hear and speak with.

    All before anything is heard: what is wrong costs nothing. Raises InputError.
    """
    if given.microphone and _is_replayed(context):
        raise InputError("a conversation at the microphone cannot be replayed: its sound was not kept")
    recording = None if given.microphone else await asyncio.to_thread(read_wav, given.audio)
    if given.documents:
        await context.library(given.documents)
    transcriber = None
    if not _is_replayed(context):  # for which nothing need be installed
        check_money([given.transcriber, given.speaker], context.controls)
        transcriber = await asyncio.to_thread(_checked, given, own_ear=own_ear, own_voice=own_voice)
    if not given.documents and (await context.model(role))._llm_type == "offline":
        remedy = "give --documents, or name a model: --model openai:gpt-5-mini"
        raise InputError("the offline model answers from documents alone, and none are given", remedy=remedy)
    return recording, transcriber


def _checked(given: VoiceInput, *, own_ear: bool, own_voice: bool) -> Transcriber:
    """Everything that is wrong with what was asked for is told before anything is heard; raises InputError."""
    resolve_speaker(given.speaker, given.voice)
    if given.microphone and own_ear:
        check_microphone()
    if given.speech:
        check_wav_target("--speech", given.speech)
    elif own_voice and given.microphone:
        check_loudspeaker("ask by a recording: voice question.wav --speech answer.wav")
    elif own_voice:
        check_loudspeaker()
    if given.speech and given.audio and Path(given.speech).resolve() == Path(given.audio).resolve():
        raise InputError("--speech would overwrite the question", where=given.speech, remedy="choose another name")
    return resolve_transcriber(given.transcriber)


async def _listened(microphone: Callable[[], Microphone], patience: float, context: RunContext) -> Sound | None:
    """What somebody says; None where nobody does."""
    async with AsyncExitStack() as stack:
        listener = await _unless_stopped(_opened(stack, microphone), context)
        tell("listening", patience=patience)
        try:
            speaks = await _unless_stopped(listener.began(patience), context)
        except StopRequested:
            return None
        return await listener.finished() if speaks else None


async def _opened(stack: AsyncExitStack, microphone: Callable[[], Microphone]) -> Listener:
    listener = Listener(await stack.enter_async_context(microphone()))
    await listener.ready()
    return listener


async def transcribed(sound: Sound, words: str, spec: str, transcriber: Transcriber | None, context: RunContext) -> str:
    """What is said in a sound. It is a tool call of the run: traced, and kept in its journal. Raises OrchestratorError.

    `transcriber` is the one that `spec` names, None where the journal is to have the answer.
    """

    async def hear(recording: str) -> str:
        if transcriber is None:
            raise OrchestratorError("nobody is there to hear: the run that is replayed heard something else")
        return await transcriber.hear(sound, words, context.terms)

    limits = {"read_only": True, "max_concurrency": transcriber.at_once if transcriber else 1}
    tool = StructuredTool.from_function(coroutine=hear, name="hear", description="Write down what is said.", metadata=limits)
    digest = hashlib.sha256(f"{sound.rate} {spec} {words}".encode() + sound.samples).hexdigest()
    args = {"recording": f"{sound.seconds:.1f} s, sha256 {digest[:16]}"}
    message = await context.call_tool(tool, {"name": "hear", "args": args, "id": digest[:24], "type": "tool_call"})
    if message.status == "error":
        raise OrchestratorError(str(message.content), where=f"transcriber {spec}")
    return one_line(message.text, 20_000)


async def _within(seconds: float, option: str, work: Awaitable[T]) -> T:
    """`work`, which may take so long, waiting for its turn left out; raises CallTimeoutError."""
    clock = Clock(seconds)
    try:
        async with clock:
            return await work
    except TimeoutError:
        if not clock.expired:
            raise
        remedy = f"raise --{option.replace('_', '-')}"
        raise CallTimeoutError(f"{_STAGES[option]} took longer than {seconds:g} s ({option})", remedy=remedy) from None


@dataclass
class _Turn:
    """One answer, spoken while it is written, unless somebody speaks."""

    given: VoiceInput
    context: RunContext
    talk: Agent
    from_documents: Agent
    microphone: Callable[[], Microphone]
    loudspeaker: Callable[[], AbstractAsyncContextManager[Outlet]]
    spoken: Spoken = field(default_factory=Spoken)

    async def answer(self, state: VoiceState) -> dict[str, Any]:
        earlier, question = list(state.get("messages", [])), HumanMessage(state["transcript"])
        asked = state.get("asked") or []
        wanted = f"{asked[0]} (asked {asked[1]!r}, the user answered: {state['transcript']})" if asked else state["transcript"]
        answer, pending, about = await self._unless_interrupted([*earlier, question], wanted)
        failures = [self.spoken.failure] if self.spoken.failure else []
        if answer is None:  # somebody spoke: what was heard of the answer is what was said
            told = Answer(text := " ".join([*self.spoken.sentences, "…"]), text)
        else:
            told = answer
            if self.given.documents and not about and not told.findings and not self.given.microphone:
                error = told.gaps[0] if told.gaps else "no finding is supported by the documents"
                failures.append(Failure(role="documents", status="failed", error=error))
        said: list[AnyMessage] = [question, AIMessage(told.text)]
        report = _conversation([*earlier, *said]) if self.given.microphone else told.report
        found = {"findings": told.findings, "gaps": told.gaps, "sources": told.sources}
        return {"messages": said, "report": report, **found, "pending": pending, "asked": about, "failures": failures}

    async def _unless_interrupted(self, messages: Sequence[AnyMessage], wanted: str) -> tuple[Answer | None, bytes, list[str]]:
        """The answer, or None and what somebody said meanwhile; and what the user was asked instead of an answer."""
        async with AsyncExitStack() as stack:
            listener = None
            if self.given.microphone and self.given.barge_in:
                listener = Listener(await stack.enter_async_context(self.microphone()))
            try:
                answer = await _or_speech(self._spoken(lambda feed: self._answered(messages, wanted, feed)), listener)
                about: list[str] = []
            except GraphInterrupt as pause:
                asked = question_of(pause.args[0][0].id, pause.args[0][0].value)
                if not self.given.microphone or asked.kind != "clarify":
                    raise
                answer = await _or_speech(self._spoken(lambda feed: _asking(asked.text, feed)), listener)
                about = [wanted, asked.text] if self.given.documents else []
            if answer is not None or listener is None:
                return answer, b"", about
            tell("interrupted", said=len(self.spoken.sentences))
            return None, (await listener.finished()).samples, about

    async def _spoken(self, make: Callable[[Callable[[str], None]], Awaitable[Answer]]) -> Answer:
        """What `make` comes to, each sentence that it feeds spoken meanwhile."""
        sentences: asyncio.Queue[str | None] = asyncio.Queue()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._speak(sentences), name="voice")
                answer = await _within(self.given.answer_timeout, "answer_timeout", make(sentences.put_nowait))
                sentences.put_nowait(None)
        except BaseExceptionGroup as failed:
            raise _first(failed) from None
        return answer

    async def _speak(self, sentences: "asyncio.Queue[str | None]") -> None:
        """A voice that fails costs the sound, not the answer; then no file is left that would be half an answer."""
        given = self.given
        if _is_replayed(self.context):  # a replay makes no connection and writes no file: what was written down is compared
            async for _ in _until_none(sentences):
                pass
            return
        try:
            speaker = await asyncio.to_thread(resolve_speaker, given.speaker, given.voice)
            async with open_wav(Path(given.speech)) if given.speech else self.loudspeaker() as outlet:
                coming, limit = _until_none(sentences), given.speaking_timeout
                await _unless_stopped(say_all(coming, speaker, outlet, self.spoken, limit=limit, terms=self.context.terms), self.context)
            tell("spoken", sentences=len(self.spoken.sentences), seconds=round(self.spoken.seconds, 3), file=given.speech)
        except OrchestratorError as error:
            self.spoken.failure = Failure(role="speaker", status=status_of(error), error=said(error))

    async def _answered(self, messages: Sequence[AnyMessage], wanted: str, feed: Callable[[str], None]) -> Answer:
        if self.given.documents:
            return await self._from_documents(wanted, feed)
        self.context.terms.heard = True  # whoever speaks an answer reads its tokens, though nobody may read the run's events
        telling = Telling(self.talk.name, feed)
        further: dict[str, Any] = {
            key: value for key in ("tools", "allow_hosts") if key in self.talk.channels and (value := getattr(self.given, key))
        }
        with overhearing(telling):
            told = await call_agent(self.talk, {"messages": list(messages), **further}, self.context)
        telling.finish(told["answer"])
        return Answer(told["answer"], told["answer"])

    async def _from_documents(self, question: str, feed: Callable[[str], None]) -> Answer:
        asked = {"question": question, "documents": self.given.documents, "allow_hosts": self.given.allow_hosts}
        wanted = {key: value for key, value in asked.items() if key in self.from_documents.channels}
        came = await call_agent(self.from_documents, wanted, self.context)
        findings: list[Finding] = came["findings"]
        for sentence in (sentences := _sentences_of(findings, came["sources"])):
            feed(sentence)
        return Answer(" ".join(sentences), came["report"], findings, came["gaps"], came["sources"])


async def _unless_stopped(work: Awaitable[T], context: RunContext) -> T:
    """`work`, which ends as soon as the run is asked to stop: whoever asks for it wants to hear and say no more. Raises StopRequested."""

    async def stopped() -> None:
        await context.terms.stop_asked.wait()
        context.terms.check()

    try:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(stopped(), name="voice is wanted")
            came = await work
            watching.cancel()
    except BaseExceptionGroup as failed:
        raise _first(failed) from None
    return came


async def _or_speech(work: Coroutine[Any, Any, T], listener: Listener | None) -> T | None:
    """What `work` comes to, or None where somebody speaks before it is over: then it is cancelled."""
    if listener is None:
        return await work
    working, hearing = asyncio.ensure_future(work), asyncio.ensure_future(listener.began())
    try:
        await asyncio.wait({working, hearing}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done() and not hearing.result():  # there is nothing more to hear, as at the end of a recording
            await asyncio.wait({working})
        return working.result() if working.done() else None
    finally:
        for task in (working, hearing):
            task.cancel()
        await asyncio.gather(working, hearing, return_exceptions=True)


def _is_replayed(context: RunContext) -> bool:
    return context.terms.journal is not None and context.terms.journal.mode == "replay"


async def _asking(text: str, feed: Callable[[str], None]) -> Answer:
    feed(spoken(text) or text)
    return Answer(text, text)


async def _until_none(sentences: "asyncio.Queue[str | None]") -> AsyncIterator[str]:
    while (sentence := await sentences.get()) is not None:
        yield sentence


def _sentences_of(findings: Sequence[Finding], sources: Sequence[Source]) -> list[str]:
    """Findings as they are spoken: where a claim is from is said before the first one of each source."""
    titles = {source.uri: source.title or Path(source.uri).name for source in sources}
    sentences, last = list[str](), ""
    for finding in findings[:_SPOKEN]:
        source = finding.citations[0].source if finding.citations else ""
        place = f"From {titles.get(source) or Path(source).name}: " if source and source != last else ""
        last = source
        if claim := spoken(finding.claim):
            sentences.append(place + claim)
    return sentences or ["The documents do not answer that."]


def _conversation(messages: Sequence[AnyMessage]) -> str:
    """A conversation to read."""
    turns = (f"**{'You' if isinstance(message, HumanMessage) else 'Answer'}:** {message.text}" for message in messages)
    return "\n\n".join(turns)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What was raised in a group: where a person is asked, that."""
    errors = list(group.exceptions)
    return next((error for error in errors if isinstance(error, GraphBubbleUp)), errors[0])
