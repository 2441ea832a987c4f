"""Models and their continuations: loading, chat format, shared prefixes, decoding, samplers."""
