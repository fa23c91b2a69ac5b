"""A conversation: `--thread NAME` goes on with it, answers cite `--documents`; without INPUT it opens a prompt."""

from agents import create_planner, create_researcher, create_verifier
from orchestrator import Workflow
from orchestrator.graphs.talk import create_talk

workflow = Workflow(create_talk(create_planner(), create_researcher(), create_verifier()), name="chat")
