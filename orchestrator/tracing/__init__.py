"""What a run did, span by span: kept in the store, sent to LangSmith or a collector where that is asked for, and shown."""
