"""Judges: they decide whether a path corrects itself, and are measured against labels."""
