"""The LSTM is torch's, cell by cell."""

import torch

from ssmcore import create_mixer


def test_equals_torchs_cell_with_copied_weights():
    mixer, cell, x = create_mixer("lstm", 6), torch.nn.LSTMCell(6, 6), torch.randn(3, 12, 6)
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in mixer.cell.state_dict().items()})
    y, state = mixer(x, return_state=True)
    h = c = torch.zeros(3, 6)
    for t in range(12):
        h, c = cell(x[:, t], (h, c))
        torch.testing.assert_close(y[:, t], h, rtol=0, atol=1e-6)
    torch.testing.assert_close(state["h"], h, rtol=0, atol=1e-6)
    torch.testing.assert_close(state["c"], c, rtol=0, atol=1e-6)


def test_equals_the_formula():
    mixer, x = create_mixer("lstm", 4, forget_bias=2.0), torch.randn(1, 1, 4)
    h0, c0 = torch.randn(2, 1, 4).unbind()
    p = dict(mixer.cell.named_parameters())
    gates = x[:, 0] @ p["weight_ih_l0"].T + p["bias_ih_l0"] + h0 @ p["weight_hh_l0"].T + p["bias_hh_l0"]
    i, f, g, o = gates.chunk(4, -1)
    c = torch.sigmoid(f) * c0 + torch.sigmoid(i) * torch.tanh(g)
    _, state = mixer(x, {"h": h0, "c": c0})
    torch.testing.assert_close(state["c"], c)
    torch.testing.assert_close(state["h"], torch.sigmoid(o) * torch.tanh(c))


def test_the_forget_gate_starts_open():
    cell = create_mixer("lstm", 4, forget_bias=1.5).cell
    assert ((cell.bias_ih_l0 + cell.bias_hh_l0)[4:8] == 1.5).all()
    assert cell.weight_hh_l0.abs().max() <= 0.5
