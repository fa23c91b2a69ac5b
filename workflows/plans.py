"""Draw up several plans at once, judge them by stated criteria, and research the best."""

from agents import create_judge, create_planner, create_researcher, create_verifier, create_writer
from orchestrator import Workflow
from orchestrator.graphs.plans import create_plans

workflow = Workflow(create_plans(create_planner(), create_judge(), create_researcher(), create_verifier(), create_writer()), name="plans")
graph = workflow.compile()
