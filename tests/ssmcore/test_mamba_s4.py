"""Mamba-S4: with its gate open and its convolution the identity, the block is S4D's core between two linear maps."""

import torch
import torch.nn.functional as F

from ssmcore import create_mixer
from ssmcore.mixer import Context


def test_the_block_is_a_core_between_maps_and_a_gate():
    torch.manual_seed(1)
    mixer = create_mixer("mamba_s4", 6, d_state=8, d_conv=1)
    s4d = create_mixer("s4d", 12, d_state=8)
    with torch.no_grad():
        mixer.conv1d.weight.fill_(1)
        mixer.conv1d.bias.zero_()
        for name in ("log_dt", "A_log", "A_imag", "C", "D"):
            s4d.get_parameter(name).copy_(mixer.get_parameter(name))
    x = torch.randn(2, 50, 6)
    u, z = mixer.in_proj(x).chunk(2, -1)
    want = mixer.out_proj(s4d.core(F.silu(u), None, Context())[0] * F.silu(z))
    torch.testing.assert_close(mixer(x)[0], want, rtol=0, atol=1e-5)
