"""Linear time-invariant cores are their kernels."""

import pytest
import torch

from ssmcore.mixer import Context
from tests.properties.cases import D, assert_close, tokens


def convolve(kernel, x):
    """sum_s kernel[s] x[t - s], for kernels (l, d) of single channels and (l, d, d) of all."""
    form = "ld,bld->bd" if kernel.ndim == 2 else "lij,blj->bi"
    l = x.shape[1]
    return torch.stack([torch.einsum(form, kernel[: t + 1].flip(0), x[:, : t + 1]) for t in range(l)], 1)


@pytest.mark.parametrize("return_state", [False, True])
@pytest.mark.parametrize("l", [1, 2, 17, 50])
def test_core_is_its_kernel(lti, l, return_state):
    x = tokens(2, l)
    y, _ = lti.core(x, None, Context(return_state=return_state))
    assert_close(y, convolve(lti.kernel(l), x))
    impulse = torch.zeros(D, l, D)
    impulse[torch.arange(D), 0, torch.arange(D)] = 1
    answer, _ = lti.core(impulse, None, Context(return_state=return_state))
    kernel = lti.kernel(l)
    want = torch.diag_embed(kernel).movedim(1, 0) if kernel.ndim == 2 else kernel.movedim(2, 0)
    assert_close(answer, want.contiguous())


def test_core_is_linear_and_time_invariant(lti):
    def core(x):
        return lti.core(x, None, Context(return_state=True))[0]

    x, other = tokens(2, 12), tokens(2, 12, seed=2)
    assert_close(core(2 * x - 3 * other), 2 * core(x) - 3 * core(other))
    late = torch.cat([torch.zeros(2, 5, D), x], 1)
    assert_close(core(late)[:, 5:], core(x))
