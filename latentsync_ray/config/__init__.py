"""Typed configuration: recipe, search, value spaces, and how they are read from YAML and arguments."""
