"""LatentSync's networks, their checkpoints, and how frozen ones are loaded."""
