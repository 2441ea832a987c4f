"""Commands that measure; run them from the project's folder as modules."""
