"""The agents that come with the project: async LangGraph subgraphs with declared input and output schemas."""

from agents.planner import create_planner
from agents.researcher import create_researcher
from agents.summarizer import create_summarizer
from agents.verifier import create_verifier
from agents.writer import create_writer

__all__ = ["create_planner", "create_researcher", "create_summarizer", "create_verifier", "create_writer"]
