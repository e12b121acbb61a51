"""From videos to a prepared set of clips."""
