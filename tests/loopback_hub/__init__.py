"""A Hub on this machine: for tests, and for `make hub`."""
