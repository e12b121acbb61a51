"""Clips: video and sound files, faces in footage, drawn faces, and the prepared set."""
