"""Graph builders for patterns that workflows share: one builder a file."""
