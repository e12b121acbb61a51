"""The built-in training: LatentSync's models, losses, stages, data and preparation."""
