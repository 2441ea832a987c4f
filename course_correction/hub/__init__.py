"""Pushing datasets, models, results and the metric to the Hub, with their cards."""
