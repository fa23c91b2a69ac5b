"""What workflows are tested with: a real OpenAI-compatible server on this machine that answers, and fails, as a test says.

with model_server(agents_script()) as server:
    result = await run("research", {...}, model=server.chat_model())
    assert server.in_flight_peak <= 16
"""

from orchestrator.testing.answers import agents_script
from orchestrator.testing.audio import tone
from orchestrator.testing.cassettes import replay_cassette, save_cassette
from orchestrator.testing.embeddings import embeddings_of
from orchestrator.testing.faults import FAULTS, fault, faulty, mixed, rate_limited
from orchestrator.testing.replies import Fault, Overlong, Reply, Request, Responder, answer_for
from orchestrator.testing.server import ModelServer, model_server

__all__ = [
    "FAULTS",
    "Fault",
    "ModelServer",
    "Overlong",
    "Reply",
    "Request",
    "Responder",
    "agents_script",
    "answer_for",
    "embeddings_of",
    "fault",
    "faulty",
    "mixed",
    "model_server",
    "rate_limited",
    "replay_cassette",
    "save_cassette",
    "tone",
]
