"""Answer a question from documents: every sentence of the report cites the words it rests on."""

from agents import create_planner, create_researcher, create_verifier, create_writer
from orchestrator import Workflow, create_supervisor

workflow = Workflow(create_supervisor(create_planner(), create_researcher(), create_verifier(), create_writer()), name="research")
graph = workflow.compile()
