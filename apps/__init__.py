"""Things a person runs: the tour, the benchmark."""
