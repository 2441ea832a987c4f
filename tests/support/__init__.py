"""What tests share: models, rows, servers, runs."""
