"""The selective scan: see op.py for the contract, routed.py for several at once, reference.py for the mathematics."""

from .op import selective_scan
from .routed import routed_scan
