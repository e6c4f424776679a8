"""segworker: every object of very large imagery, whole, once."""
