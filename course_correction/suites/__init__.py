"""Suites beside C²-Eval: jailbreak, general, benign, dynamics."""
