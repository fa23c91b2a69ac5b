"""Look at one question from several viewpoints at once: agreements and contradictions side by side."""

from agents import create_comparer, create_researcher, create_verifier, create_viewpoints
from orchestrator import Workflow
from orchestrator.graphs.perspectives import create_perspectives

perspectives = create_perspectives(create_viewpoints(), create_researcher(), create_verifier(), create_comparer())
workflow = Workflow(perspectives, name="perspectives")
graph = workflow.compile()
