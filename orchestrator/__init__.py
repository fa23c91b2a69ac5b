"""Multi-agent orchestration on LangGraph: importing this package is cheap, its names load what they need."""
