"""The plain recurrent cell by hand."""

import torch

from ssmcore import create_mixer


@torch.no_grad()
def test_the_cell_by_hand():
    mixer, x = create_mixer("rnn", 4), torch.randn(2, 6, 4)
    W, U, b, c = mixer.cell.all_weights[0]
    h, want = torch.zeros(2, 4), []
    for t in range(6):
        h = torch.tanh(x[:, t] @ W.T + b + h @ U.T + c)
        want.append(h)
    torch.testing.assert_close(mixer(x)[0], torch.stack(want, 1))
    torch.testing.assert_close(mixer(x, return_state=True)[1]["h"], h)
