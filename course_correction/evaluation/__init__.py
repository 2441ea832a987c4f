"""C²-Eval as stages that meet at the files of a run folder: settings, items, sample, judge, measure, report."""
