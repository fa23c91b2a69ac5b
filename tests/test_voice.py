"""The voice workflow: real sound made by espeak-ng, real HTTP, no device."""

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agents import create_planner, create_researcher, create_verifier, create_writer
from orchestrator import Controls, Workflow, create_supervisor, load_workflow, replay, resume, run, stream
from orchestrator.context import RunContext
from orchestrator.errors import InputError
from orchestrator.events import Event
from orchestrator.forecast import forecast
from orchestrator.graphs.tool_loop import create_tool_loop
from orchestrator.graphs.voice import create_voice
from orchestrator.progress import plain_lines
from orchestrator.speech import HEARING_RATE, Sound, read_wav
from orchestrator.speech.devices import FRAME_BYTES
from orchestrator.testing import ModelServer, Reply, model_server
from workflows.voice import PROMPT, graph, tools, workflow

ARKONA = "The lighthouse of Arkona was built in 1827. It stands on an island. The tower was closed in 1905. The museum shows old lamps.\n"
REMOTE = {"transcriber": "openai:whisper-1", "speaker": "openai:gpt-4o-mini-tts"}


def recorded(path: Path, text: str) -> str:
    subprocess.run(["espeak-ng", "-v", "en-us", "-w", str(path), text], check=True)
    return str(path)


@pytest.fixture
def question(tmp_path: Path) -> str:
    return recorded(tmp_path / "question.wav", "When was the lighthouse built?")


def used(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)


def kinds(events: list[Event], *wanted: str) -> list[str]:
    return [event.kind for event in events if event.kind in wanted]


async def test_a_spoken_question_is_answered_aloud_from_documents(tmp_path: Path, question: str) -> None:
    (tmp_path / "arkona.md").write_text(ARKONA, encoding="utf-8")
    given = {"audio": question, "speech": str(tmp_path / "answer.wav"), "documents": [str(tmp_path / "arkona.md")]}
    events = [event async for event in stream("voice", given, model="offline", db="memory://")]
    result = events[-1].fields
    assert (result["status"], result["error"]) == ("complete", None)
    assert result["output"]["transcript"] == "when was the lighthouse built"
    assert "The lighthouse of Arkona was built in 1827." in result["output"]["report"]
    order = kinds(events, "heard", "saying", "audio", "spoken", "result")
    assert (order[:2], order[-2:]) == (["heard", "saying"], ["spoken", "result"])
    assert order.index("saying") < order.index("audio")
    said = [event.fields["text"] for event in events if event.kind == "saying"]
    assert said[0].endswith("The lighthouse of Arkona was built in 1827.")
    heard = await asyncio.to_thread(read_wav, str(tmp_path / "answer.wav"))
    assert heard.seconds == pytest.approx(sum(event.fields["seconds"] for event in events if event.kind == "audio"), abs=0.1)


@contextlib.asynccontextmanager
async def holding(first: str, last: str, release: asyncio.Event) -> AsyncIterator[str]:
    """A chat endpoint that streams `first`, and `last` once it is released."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r\n")[0]))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for text, reason in ((first, None), (last, "stop")):
            choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": reason}
            part = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "test-model", "choices": [choice]}
            writer.write(f"data: {json.dumps(part)}\n\n".encode())
            await writer.drain()
            if reason is None:
                await release.wait()
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


async def test_the_first_sentence_is_heard_before_the_last_is_written(
    tmp_path: Path, question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server holds the last sentence back until the sound of the first is there: without that nothing would ever end."""
    release, order = asyncio.Event(), list[str]()
    async with model_server(hears="How old is it?") as server, holding("It is old. It was", " built in 1827.", release) as base_url:
        used(server, monkeypatch)
        given = {"audio": question, "speech": str(tmp_path / "answer.wav"), **REMOTE}
        async for event in stream("voice", given, model=server.chat_model(base_url=base_url), db="memory://"):
            order += [f"{event.kind} {event.fields.get('number', '')}"] if event.kind in ("heard", "saying", "audio", "spoken") else []
            if event.kind == "audio":
                release.set()
            if event.kind == "result":
                result = event.fields
    assert (result["status"], result["error"]) == ("complete", None)
    assert (result["output"]["transcript"], result["output"]["report"]) == ("How old is it?", "It is old. It was built in 1827.")
    assert order == ["heard ", "saying 1", "audio 1", "saying 2", "audio 2", "spoken "]
    assert [request.body["input"] for request in server.requests if "input" in request.body] == ["It is old.", "It was built in 1827."]
    assert server.requests[0].body["file"][:4] == b"RIFF"


async def spoken_by(frames: Any, played: Any, server: ModelServer, stop: asyncio.Event | None = None, **given: Any) -> list[Event]:
    """A conversation at a scripted microphone, heard by a scripted loudspeaker."""
    talk = create_tool_loop(role="voice", prompt=PROMPT, tools=tools)
    research = create_supervisor(create_planner(), create_researcher(), create_verifier(), create_writer())

    @contextlib.asynccontextmanager
    async def microphone() -> AsyncIterator[AsyncIterator[bytes]]:
        yield frames()

    @contextlib.asynccontextmanager
    async def loudspeaker() -> AsyncIterator[Any]:
        yield played

    graph = create_voice(talk, research, microphone=microphone, loudspeaker=loudspeaker)
    values = {"microphone": True, **REMOTE, **given}
    workflow = Workflow(graph, name="voice")
    return [event async for event in stream(workflow, values, model=server.chat_model(), db="memory://", stop=stop)]


class Played:
    """A loudspeaker that takes as long as a test says."""

    def __init__(self, hold: asyncio.Event | None = None) -> None:
        self.begun: list[float] = []
        self.stopped = 0
        self.begins = asyncio.Event()
        self._hold = hold

    async def play(self, sound: Sound) -> None:
        self.begun.append(sound.seconds)
        self.begins.set()
        try:
            if self._hold is not None:
                await self._hold.wait()
        except asyncio.CancelledError:
            self.stopped += 1
            raise


def frames_of(sound: Sound) -> list[bytes]:
    samples = sound.at(HEARING_RATE).samples + bytes(FRAME_BYTES * 40)
    return [samples[at : at + FRAME_BYTES] for at in range(0, len(samples) - FRAME_BYTES, FRAME_BYTES)]


async def test_a_microphone_listens_from_its_first_sound_on_however_late_that_comes(question: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that was opened may take seconds to begin: its silence until then is not the speaker's, whose patience is shorter."""
    spoken, opened = await asyncio.to_thread(lambda: frames_of(read_wav(question))), 0

    async def frames() -> AsyncIterator[bytes]:
        nonlocal opened
        opened += 1
        if opened == 1:
            await asyncio.sleep(0.3)
            for frame in [bytes(FRAME_BYTES), *spoken]:
                yield frame

    async with model_server(lambda _: Reply(text="It is old."), hears=lambda _: "How old is it?") as server:
        used(server, monkeypatch)
        events = await spoken_by(frames, Played(), server, patience=0.2)
    assert kinds(events, "heard", "spoken") == ["heard", "spoken"]


async def test_speech_interrupts_the_answer_and_is_the_next_question(question: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = await asyncio.to_thread(lambda: frames_of(read_wav(question)))
    hold = asyncio.Event()
    played = Played(hold)
    opened = 0

    async def frames() -> AsyncIterator[bytes]:
        nonlocal opened
        opened += 1
        if opened == 2:  # beside the first answer: silence until it is heard
            while not played.begins.is_set():
                yield bytes(FRAME_BYTES)
                await asyncio.sleep(0)
        for frame in spoken if opened < 3 else ():
            yield frame
            await asyncio.sleep(0)
        hold.set() if opened > 2 else None

    said = iter(["How old is it?", "Who built it?"])
    answers = iter(["It was built in 1827. That is long ago.", "An architect did."])
    async with model_server(lambda _: Reply(text=next(answers)), hears=lambda _: next(said)) as server:
        used(server, monkeypatch)
        events = await spoken_by(frames, played, server)
    result = events[-1].fields
    assert (result["status"], result["error"]) == ("complete", None)
    assert kinds(events, "heard", "interrupted", "spoken") == ["heard", "interrupted", "heard", "spoken"]
    assert played.stopped == 1
    asked = [[(m["role"], m["content"]) for m in r.body["messages"][1:]] for r in server.requests if "messages" in r.body]
    assert asked[1] == [("user", "How old is it?"), ("assistant", "It was built in 1827. …"), ("user", "Who built it?")]
    assert result["output"]["report"].splitlines()[-1] == "**Answer:** An architect did."


async def test_a_run_that_is_stopped_falls_silent(question: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sound that is played would never end; the run has ten seconds to end what is in flight, which no sound needs."""
    spoken, played, stop = await asyncio.to_thread(lambda: frames_of(read_wav(question))), Played(asyncio.Event()), asyncio.Event()

    async def frames() -> AsyncIterator[bytes]:
        for frame in spoken:
            yield frame
        await asyncio.Event().wait()

    async def stopping() -> None:
        await played.begins.wait()
        stop.set()

    async with model_server(lambda _: Reply(text="It is old. It is high."), hears="How old is it?") as server:
        used(server, monkeypatch)
        pressing = asyncio.ensure_future(stopping())
        events = await spoken_by(frames, played, server, stop=stop, barge_in=False)
        await pressing
    result = events[-1].fields
    assert (result["status"], played.stopped, len(played.begun)) == ("cancelled", 1, 1)
    assert "It is old. It is high." in result["output"]["report"]  # it ended by itself: what is cut off after those seconds has none


async def test_a_clarifying_question_waits_for_its_answer(tmp_path: Path, question: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a recording the run waits (exit code 5), and goes on with the answer: nothing is heard or asked twice."""
    db = f"sqlite:///{tmp_path / 'runs.db'}"

    def reply(body: dict[str, Any]) -> Reply:
        last = body["messages"][-1]
        return Reply(text=f"You mean {last['content']}.") if last["role"] == "tool" else Reply(calls=[("ask_user", {"text": "Which one?"})])

    async with model_server(reply, hears="How old is it?") as server:
        used(server, monkeypatch)
        given = {"audio": question, "speech": str(tmp_path / "answer.wav"), **REMOTE}
        waiting = await run("voice", given, model="openai:test-model", db=db)
        assert (waiting.status, [asked.text for asked in waiting.questions]) == ("interrupted", ["Which one?"])
        assert not (tmp_path / "answer.wav").exists()
        result = await resume(waiting.run_id, answers={waiting.questions[0].id: "The old tower"}, db=db)
    assert (result.status, result.output["report"]) == ("complete", "You mean The old tower.")
    assert (tmp_path / "answer.wav").exists()
    paths = [request.path.rpartition("/")[2] for request in server.requests]
    assert paths == ["transcriptions", "completions", "completions", "speech"]
    (tmp_path / "answer.wav").unlink()
    monkeypatch.delenv("OPENAI_API_KEY")
    replayed = await replay(waiting.run_id, db=db)
    assert (replayed.identical, replayed.result.output["report"]) == (True, "You mean The old tower.")
    assert not (tmp_path / "answer.wav").exists()


async def test_the_model_may_call_the_tools_that_are_named(tmp_path: Path, question: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        last = body["messages"][-1]
        return Reply(text=f"It is {last['content']}.") if last["role"] == "tool" else Reply(calls=[("calculator", {"expression": "6 * 7"})])

    async with model_server(reply, hears="What is six times seven?") as server:
        used(server, monkeypatch)
        given = {"audio": question, "speech": str(tmp_path / "answer.wav"), "tools": ["calculator"], **REMOTE}
        result = await run("voice", given, model=server.chat_model(), db="memory://")
    assert (result.status, result.error) == ("complete", None)
    assert "42" in result.output["report"]
    offered = [tool["function"]["name"] for tool in server.requests[1].body["tools"]]
    assert offered == ["calculator", "ask_user"]


async def test_at_the_microphone_a_clarifying_question_is_spoken_and_answered(question: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = await asyncio.to_thread(lambda: frames_of(read_wav(question)))
    turns = iter([spoken, spoken, []])

    async def frames() -> AsyncIterator[bytes]:
        for frame in next(turns):
            yield frame

    def reply(body: dict[str, Any]) -> Reply:
        asked = sum(message["role"] == "user" for message in body["messages"])
        return Reply(text="That is from 1827.") if asked == 2 else Reply(calls=[("ask_user", {"text": "Which one?"})])

    said = iter(["How old is it?", "The old tower."])
    async with model_server(reply, hears=lambda _: next(said)) as server:
        used(server, monkeypatch)
        events = await spoken_by(frames, Played(), server, barge_in=False)
    assert events[-1].fields["status"] == "complete", events[-1].fields["error"]
    assert [event.fields["text"] for event in events if event.kind == "saying"] == ["Which one?", "That is from 1827."]
    lines = events[-1].fields["output"]["report"].splitlines()[::2]
    assert lines == ["**You:** How old is it?", "**Answer:** Which one?", "**You:** The old tower.", "**Answer:** That is from 1827."]


async def test_sound_that_is_asked_for_counts_as_calls(tmp_path: Path, question: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in the bill without tokens, and what they cost is not known; a budget of calls stops them like others."""
    async with model_server(lambda _: Reply(text="It is old. It is high."), hears="How old is it?") as server:
        used(server, monkeypatch)
        given = {"audio": question, "speech": str(tmp_path / "answer.wav"), **REMOTE}
        result = await run("voice", given, model="openai:test-model", db="memory://")
        roles = {
            role: (usage["model_calls"], usage["estimated_calls"], usage["input_tokens"] + usage["output_tokens"], usage["cost_usd"])
            for role, usage in result.usage["by_role"].items()
            if role != "voice"
        }
        assert roles == {"hearing": (1, 0, 0, None), "speaking": (2, 0, 0, None)}
        assert (result.status, result.usage["model_calls"], result.usage["cost_usd"]) == ("complete", len(server.requests), None)
        (tmp_path / "answer.wav").unlink()
        limited = await run("voice", given, model="openai:test-model", db="memory://", controls={"budget": {"max_calls": 3}})
        assert (limited.status, limited.usage["model_calls"], len(server.requests)) == ("limited", 3, 4 + 3)
        assert "max_calls" in str(limited.error)
        assert limited.output["report"] == "It is old. It is high."
        assert not (tmp_path / "answer.wav").exists()
        with pytest.raises(InputError, match="the price of the sound of 'openai:whisper-1' is not known"):
            await run("voice", given, model="openai:gpt-5-mini", db="memory://", controls={"budget": {"usd": 1}})


async def test_sound_waits_for_its_turn_like_other_calls(tmp_path: Path, question: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with model_server(lambda _: Reply(text="It is old. It is high."), hears=Reply(body={"text": "How old?"}, delay=0.05)) as server:
        used(server, monkeypatch)
        lines = [{"audio": question, "speech": str(tmp_path / f"{number}.wav"), **REMOTE} for number in range(6)]
        context = RunContext(models={"": server.chat_model()}, controls=Controls(max_concurrency=1))
        answers = await asyncio.gather(*(graph.ainvoke(line, context=context) for line in lines))
    assert [answer["transcript"] for answer in answers] == ["How old?"] * 6
    assert server.in_flight_peak == 1


async def test_what_was_heard_is_not_paid_for_again(tmp_path: Path, question: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer fails, and the run is resumed by another process: the transcript and its bill are in the journal."""
    db = f"sqlite:///{tmp_path / 'runs.db'}"
    answers = iter([Reply.error(401, "no"), Reply(text="It is old.")])
    tokens = {"type": "tokens", "input_tokens": 12, "output_tokens": 3, "total_tokens": 15}
    async with model_server(lambda _: next(answers), hears=Reply(body={"text": "How old is it?", "usage": tokens})) as server:
        used(server, monkeypatch)
        given = {"audio": question, "speech": str(tmp_path / "answer.wav"), **REMOTE}
        failed = await run("voice", given, model="openai:test-model", db=db)
        assert failed.status == "failed"
        result = await resume(failed.run_id, db=db)
    assert (result.status, result.output["report"]) == ("complete", "It is old.")
    paths = [request.path.rpartition("/")[2] for request in server.requests]
    assert paths == ["transcriptions", "completions", "completions", "speech"]
    assert result.usage["model_calls"] == 4
    hearing = result.usage["by_role"]["hearing"]
    assert (hearing["model_calls"], hearing["input_tokens"], hearing["output_tokens"], hearing["cost_usd"]) == (1, 12, 3, None)


def test_the_forecast_counts_what_the_input_asks_for() -> None:
    """A recording is answered once, from the documents or by the model with its tools; nothing given may be anything."""
    controls = workflow.controls.merged({"max_branches": 2})
    models = {"": "openai:gpt-5-mini"}
    recording, conversation, documents, anything = (
        forecast(workflow, controls, models, given)
        for given in ({"audio": "q.wav"}, {"microphone": True}, {"audio": "q.wav", "documents": ["docs"]}, {})
    )
    research = forecast(load_workflow("research"), controls, models, {"question": "q", "documents": ["docs"]})
    assert (recording.usual_calls, {*recording.by_role}) == (1, {"voice"})
    assert (documents.usual_calls, documents.calls, {*documents.by_role}) == (research.usual_calls, research.calls, {*research.by_role})
    assert recording.calls < conversation.calls <= anything.calls
    assert {*anything.by_role} == {"voice", *research.by_role}


@pytest.mark.parametrize(
    ("stage", "limit", "status", "error"),
    [
        ("hears", "hearing_timeout", "failed", "hearing_timeout"),
        ("reply", "answer_timeout", "failed", "answer_timeout"),
        ("says", "speaking_timeout", "partial", "speaking_timeout"),
    ],
)
async def test_each_stage_has_a_time_limit(
    tmp_path: Path, question: str, monkeypatch: pytest.MonkeyPatch, stage: str, limit: str, status: str, error: str
) -> None:
    """A voice that hangs costs the sound and not the answer; no half file is left."""
    hangs: dict[str, Any] = {stage: Reply(fault="hang") if stage != "reply" else lambda _: Reply(fault="hang")}
    async with model_server(**{"reply": lambda _: Reply(text="It is old."), **hangs}) as server:
        used(server, monkeypatch)
        given = {"audio": question, "speech": str(tmp_path / "answer.wav"), **REMOTE, limit: 0.2}
        result = await run("voice", given, model=server.chat_model(), db="memory://")
    assert result.status == status
    assert error in str(result.error)
    unfinished = "> The run failed before its report was written. Done: hear. Not done: answer.\n\n**transcript:** What is it?\n"
    assert result.output.get("report") == {"says": "It is old.", "reply": unfinished, "hears": None}[stage]
    assert os.listdir(tmp_path) == ["question.wav"]
    assert server.abandoned == 1


async def test_a_key_that_is_refused_is_in_no_error(tmp_path: Path, question: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with model_server(hears=Reply.error(401, "Incorrect API key provided: sk-planted-key-123")) as server:
        used(server, monkeypatch)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-key-123")
        given = {"audio": question, "speech": str(tmp_path / "answer.wav"), **REMOTE}
        result = await run("voice", given, model=server.chat_model(), db="memory://")
    assert result.status == "failed"
    assert "the key was refused (401)" in str(result.error)
    assert "planted" not in result.model_dump_json()


async def test_what_cannot_work_is_told_before_anything_is_heard(tmp_path: Path, question: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").write_text("no sound")
    for given, told in (
        ({}, "give a recording or --microphone"),
        ({"audio": question, "microphone": True}, "not both"),
        ({"audio": str(tmp_path / "notes.txt"), "speaker": "say"}, "is no WAV file"),  # first what was given, then what there is
        ({"audio": str(tmp_path / "none.wav"), "speech": str(tmp_path / "a.wav")}, "there is no such recording"),
        ({"audio": question, "speech": str(tmp_path / "notes.txt")}, "it is not overwritten"),
        ({"audio": question, "speech": question}, "would overwrite the question"),
        ({"audio": question, "speech": str(tmp_path / "no" / "a.wav")}, "does not exist"),
        ({"audio": question, "speech": str(tmp_path / "a.wav"), "transcriber": "poketsphinx"}, "did you mean 'pocketsphinx'"),
        ({"audio": question, "speech": str(tmp_path / "a.wav"), "speaker": "say"}, "there is no speaker 'say'"),
        ({"audio": question, "speech": str(tmp_path / "a.wav"), "voice": "../x"}, "no name of a voice"),
        ({"audio": question, "speech": str(tmp_path / "a.wav")}, "the offline model answers from documents alone"),
    ):
        with pytest.raises(InputError) as refused:
            await run("voice", given, model="offline", db="memory://")
        assert told in str(refused.value)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="espeak-ng is not installed"):
        await run("voice", {"audio": question, "speech": str(tmp_path / "a.wav")}, model="offline", db="memory://")


async def test_what_a_hostile_endpoint_heard_and_answered_reaches_no_terminal(
    tmp_path: Path, question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = "\x1b]52;c;aGk=\x07\x1b[2Jold\x9b31m \u202etower\r\nis"
    async with model_server(lambda _: Reply(text=f"{hostile}. It is {hostile}."), hears=hostile) as server:
        used(server, monkeypatch)
        given = {"audio": question, "speech": str(tmp_path / "answer.wav"), **REMOTE}
        events = [event async for event in stream("voice", given, model=server.chat_model(), db="memory://")]
    assert events[-1].fields["status"] == "complete", events[-1].fields["error"]
    shown = "".join(line for event in events for line in plain_lines(event))
    assert "old" in shown
    assert [character for character in shown if not character.isprintable()] == []
    assert events[-1].fields["output"]["transcript"].isprintable()
    assert all(request.body["input"].isprintable() for request in server.requests if "input" in request.body)
