"""Two-stage diffusion training as a search on Ray in which trials share what they have in common."""
