"""The scan with a matrix-valued state: see op.py for the contract, reference.py and chunked.py for the mathematics."""

from .op import chunked_scan
