"""Who trains what: the engine's actor, its decisions, worker groups and their workers."""
