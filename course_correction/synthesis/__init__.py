"""C²-Syn and C²-Eval rows: sources, cuts, triggers, ranked groups, builders. Runs no model but the teacher."""
