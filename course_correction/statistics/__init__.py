"""Rates, intervals and agreement: numbers in, numbers out."""
