"""Text to token shards (`prepare`) and token shards to batches (`tokens`).

This file imports nothing, so that the tokenizing worker processes start without torch.
"""
