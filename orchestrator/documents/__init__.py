"""A run's documents: read once, kept indexed, searched with links between them followed."""

from orchestrator.documents.checking import check_hashes, check_quotes
from orchestrator.documents.files import Skipped
from orchestrator.documents.library import Library, Passage, open_library
from orchestrator.documents.reading import Reader, open_reader

__all__ = ["Library", "Passage", "Reader", "Skipped", "check_hashes", "check_quotes", "open_library", "open_reader"]
