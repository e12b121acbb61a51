"""The learning core: plain torch, no Ray."""
