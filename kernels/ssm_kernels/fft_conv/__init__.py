"""The long convolution: see op.py for the contract, reference.py for the mathematics."""

from .op import fft_conv
