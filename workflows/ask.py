"""Ask documents a question: one search, one answer with numbered citations, every quote checked."""

from agents import create_researcher, create_verifier
from orchestrator import Workflow
from orchestrator.graphs.answer import create_answer

workflow = Workflow(create_answer(create_researcher(max_turns=0), create_verifier()), name="ask")
graph = workflow.compile()
