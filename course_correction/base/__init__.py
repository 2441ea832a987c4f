"""What every stage needs: errors, files, settings, console, processes, resumable rows. Knows no model."""
