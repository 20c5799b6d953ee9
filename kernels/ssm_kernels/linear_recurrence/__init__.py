"""The linear recurrence: see op.py for the contract, reference.py for the mathematics."""

from .op import linear_recurrence
