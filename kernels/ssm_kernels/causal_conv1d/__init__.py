"""The causal depthwise convolution: see op.py for the contract, reference.py for the mathematics."""

from .op import causal_conv1d
