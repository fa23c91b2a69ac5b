"""The agents that come with the project: async LangGraph subgraphs with declared input and output schemas."""

from agents.answerer import create_answerer
from agents.comparer import create_comparer
from agents.judge import create_judge
from agents.planner import create_planner
from agents.researcher import create_researcher
from agents.summarizer import create_summarizer
from agents.verifier import create_verifier
from agents.viewpoints import create_viewpoints
from agents.writer import create_writer

__all__ = [
    "create_answerer",
    "create_comparer",
    "create_judge",
    "create_planner",
    "create_researcher",
    "create_summarizer",
    "create_verifier",
    "create_viewpoints",
    "create_writer",
]
