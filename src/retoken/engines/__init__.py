"""Serving engines: what lets each of them serve an attached model."""
