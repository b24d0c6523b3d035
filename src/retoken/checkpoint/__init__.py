"""Checkpoints of a run on any number of processes: safetensors and JSON, whole or absent, never unpickled."""
