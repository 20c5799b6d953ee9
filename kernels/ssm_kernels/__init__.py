"""The numerical operators of the suite: tensors in, tensors out, on every backend the machine has.

Each operator is a folder: reference.py (the oracle), native.c and native.py (CPU), triton.py (GPU) and op.py (checks,
torch.library registration, choice of backend).
"""

from .associative_scan import associative_scan
from .causal_conv1d import causal_conv1d
from .chunked_scan import chunked_scan
from .fft_conv import fft_conv
from .kalman_filter import kalman_filter
from .linear_recurrence import linear_recurrence
from .selective_scan import routed_scan, selective_scan

__all__ = [
    "associative_scan",
    "causal_conv1d",
    "chunked_scan",
    "fft_conv",
    "linear_recurrence",
    "routed_scan",
    "selective_scan",
]
