"""What is kept of runs: the database and what is built on it."""
