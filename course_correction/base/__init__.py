"""What every stage needs: errors, files, settings, console, ranks, resumable rows. Knows nothing of models."""
