"""Cython: what every request or every fork crosses. Knows nothing of the rest of the package."""
