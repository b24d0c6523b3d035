"""Serving rows from where they fit: records, the packed file, and placing a model's tables."""

from retoken.serving.layout import RecordLayout
from retoken.serving.load import load
from retoken.serving.packed import PackedFile, pack
from retoken.serving.place import Placement, place
from retoken.serving.tiers import TierUse

__all__ = ["PackedFile", "Placement", "RecordLayout", "TierUse", "load", "pack", "place"]
