"""Ray Tune's side of a search: the run, trials, schedulers, search algorithms, journal and live view."""
