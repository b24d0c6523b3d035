"""Arithmetic of memory, bytes and time: what a run will need, before it runs. Numbers only."""

from retoken.plan import fit, memory, traffic, work
from retoken.plan.choose import Candidate, Choice, choose
from retoken.plan.clock import Machine, Time, step_time
from retoken.plan.frequency import Frequencies, fit_zipf
from retoken.plan.job import Job, naive_work, work_of
from retoken.plan.predict import Outlook, Plan, plan
from retoken.plan.shape import Batch, Grid, Tables, grids
from retoken.plan.work import Work

__all__ = [
    "Batch",
    "Candidate",
    "Choice",
    "Frequencies",
    "Grid",
    "Job",
    "Machine",
    "Outlook",
    "Plan",
    "Tables",
    "Time",
    "Work",
    "choose",
    "fit",
    "fit_zipf",
    "grids",
    "memory",
    "naive_work",
    "plan",
    "step_time",
    "traffic",
    "work",
    "work_of",
]
