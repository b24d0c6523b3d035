"""What the tables of a checkpoint learned: how strong rows are, who chooses which, and which of them matter."""

from retoken.inspect.inspection import Inspection
from retoken.inspect.look import Look, inspect
from retoken.inspect.subject import Subject

__all__ = ["Inspection", "Look", "Subject", "inspect"]
