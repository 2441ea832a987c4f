"""DPO on C²-Syn: settings, rows, trees, losses, trainers."""
