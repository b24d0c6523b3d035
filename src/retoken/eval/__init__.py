"""Measuring what training made: any checkpoint, on a token store, on a text, or on benchmark tasks."""

from retoken.eval.domains import DomainLoss, Domains
from retoken.eval.heldout import HeldOut, evaluate_store, evaluate_text
from retoken.eval.loading import Loaded, open_checkpoint

__all__ = [
    "DomainLoss",
    "Domains",
    "HeldOut",
    "Loaded",
    "evaluate_store",
    "evaluate_text",
    "open_checkpoint",
]
