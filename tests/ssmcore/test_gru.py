"""The GRU is torch's, cell by cell, with the reset gate outside the recurrent product."""

import torch

from ssmcore import create_mixer


def test_equals_torchs_cell_with_copied_weights():
    mixer, cell, x = create_mixer("gru", 6), torch.nn.GRUCell(6, 6), torch.randn(3, 12, 6)
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in mixer.cell.state_dict().items()})
    y, state = mixer(x, return_state=True)
    h = torch.zeros(3, 6)
    for t in range(12):
        h = cell(x[:, t], h)
        torch.testing.assert_close(y[:, t], h, rtol=0, atol=1e-6)
    torch.testing.assert_close(state["h"], h, rtol=0, atol=1e-6)


def test_the_reset_gate_stands_outside_the_product():
    mixer, x, h = create_mixer("gru", 4), torch.randn(1, 1, 4), torch.randn(1, 4)
    p = dict(mixer.cell.named_parameters())
    W_r, W_z, W_n = (x[:, 0] @ p["weight_ih_l0"].T + p["bias_ih_l0"]).chunk(3, -1)
    U_r, U_z, U_n = (h @ p["weight_hh_l0"].T + p["bias_hh_l0"]).chunk(3, -1)
    r, z = torch.sigmoid(W_r + U_r), torch.sigmoid(W_z + U_z)
    n = torch.tanh(W_n + r * U_n)
    torch.testing.assert_close(mixer(x, {"h": h})[0][:, 0], (1 - z) * n + z * h)
