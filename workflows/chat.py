"""Talk with a model, about documents where they are given: one turn with INPUT, a prompt without it."""

from agents import create_planner, create_researcher, create_verifier
from orchestrator import Workflow
from orchestrator.graphs.talk import create_talk

workflow = Workflow(create_talk(create_planner(), create_researcher(), create_verifier()), name="chat")
graph = workflow.compile()
