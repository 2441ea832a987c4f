"""Tables, plots and pages from finished metrics."""
