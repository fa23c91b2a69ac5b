"""One job in several frameworks, against one local server: what a model call costs beside its wire."""
