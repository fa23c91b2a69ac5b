"""A run's documents: read once, kept indexed, searched with links between them followed."""

from orchestrator.documents.files import Skipped
from orchestrator.documents.library import Library, Passage, open_library

__all__ = ["Library", "Passage", "Skipped", "open_library"]
