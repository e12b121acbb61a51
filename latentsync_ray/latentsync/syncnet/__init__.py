"""StableSyncNet: the model, its training, and how well it tells clips."""
