"""The Kalman filter: see op.py for the contract, reference.py for the mathematics."""

from .op import kalman_filter
