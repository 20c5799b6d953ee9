"""The numerical operators of the suite: tensors in, tensors out, on every backend the machine has.

Each operator is a folder: reference.py (the oracle), native.c and native.py (CPU), triton.py (GPU) and op.py (checks,
torch.library registration, choice of backend).
"""

from .selective_scan import selective_scan

__all__ = ["selective_scan"]
