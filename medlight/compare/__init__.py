"""Statistics and reports over recorded runs."""
