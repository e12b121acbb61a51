"""Clips: synthetic ones, reading, preparing and sampling them."""
