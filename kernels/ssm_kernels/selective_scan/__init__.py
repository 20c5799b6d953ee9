"""The selective scan: see op.py for the contract, reference.py for the mathematics."""

from .op import selective_scan
