"""Measuring what scale costs, in turns with peers on the same machine."""
