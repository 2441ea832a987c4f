"""Serve a loopback Hub: `python -m tests.loopback_hub`."""

from tests.loopback_hub.hub import main

main()
