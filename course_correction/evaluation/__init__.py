"""C²-Eval as stages that meet at the files of a run folder."""
