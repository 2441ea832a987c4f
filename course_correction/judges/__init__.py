"""Judges: who decides whether a path corrects itself, and how well they do."""
