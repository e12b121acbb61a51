"""Joining or starting a Ray cluster, and what it can hold."""
