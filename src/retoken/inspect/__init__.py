"""What the tables of a checkpoint learned: how strong rows are, which are chosen, which matter."""

from retoken.inspect.inspection import Inspection
from retoken.inspect.look import Look, inspect
from retoken.inspect.subject import Subject

__all__ = ["Inspection", "Look", "Subject", "inspect"]
