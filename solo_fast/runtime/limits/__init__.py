"""Limits of services: what they may use, who watches it, and what happens where it is too much."""
