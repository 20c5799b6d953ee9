"""Processes that scan slices of a sequence and compare with the whole; the word is a file where they meet."""

import sys
from itertools import pairwise, product
from multiprocessing import get_context

import torch
import torch.distributed as dist

from ssmcore import context_parallel
from ssmcore.functional import causal_conv1d, selective_scan

NAMES = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "h0")


def arguments(is_complex: bool, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape, is_complex=False):
        t = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return torch.complex(t, normal(*shape)) if is_complex else t

    b, l, d, n = 2, 23, 4, 3
    A = -normal(d, n).abs()
    values = (normal(b, l, d), normal(b, l, d) - 1, torch.complex(A, normal(d, n)) if is_complex else A,
              normal(b, l, n, is_complex=is_complex), normal(b, l, n, is_complex=is_complex), normal(d),
              normal(b, l, d), normal(d), normal(b, d, n, is_complex=is_complex))  # fmt: skip
    return dict(zip(NAMES, values, strict=True))


def loss_of(y, last, weight):
    value = (y * weight).sum()
    return value if last is None else value + last.abs().square().sum()


def run_scan(scan, t, **options):
    positional = [t[k] for k in NAMES[:5]]
    weights = {k: t[k] for k in ("D", "z", "dt_bias")}
    return scan(*positional, **weights, initial_state=t["h0"], dt_softplus=True, return_last_state=True, **options)


def compare(group, bounds, reverse: bool, is_complex: bool, rule: str) -> None:
    """A whole scan on this process against its part of a parallel one; gradients of parameters are summed."""
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    mine = slice(bounds[rank], bounds[rank + 1])
    whole = {k: v.requires_grad_() for k, v in arguments(is_complex).items()}
    weight = torch.randn(2, 23, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y, last = run_scan(selective_scan, whole, reverse=reverse, rule=rule)
    expected = dict(zip(NAMES, torch.autograd.grad(loss_of(y, last, weight), whole.values()), strict=True))

    first = world - 1 if reverse else 0
    own = {k: v[:, mine] if k in ("x", "dt", "B", "C", "z") else v for k, v in arguments(is_complex).items()}
    own = {k: v.detach().clone().requires_grad_() for k, v in own.items()}
    given = own if rank == first else {**own, "h0": None}
    part, end = run_scan(context_parallel.selective_scan, given, reverse=reverse, rule=rule, group=group)
    torch.testing.assert_close(part, y[:, mine])
    torch.testing.assert_close(end, last)
    loss = loss_of(part, end if rank == world - 1 else None, weight[:, mine])
    leaves = {k: v for k, v in own.items() if given[k] is not None}
    for k, g in zip(leaves, torch.autograd.grad(loss, leaves.values()), strict=True):
        if k in ("A", "D", "dt_bias"):
            flat = torch.view_as_real(g.resolve_conj()).contiguous() if g.is_complex() else g.contiguous()
            dist.all_reduce(flat, group=group)
            g = torch.view_as_complex(flat) if g.is_complex() else flat
        torch.testing.assert_close(g, expected[k] if k in ("A", "D", "dt_bias", "h0") else expected[k][:, mine], msg=k)


def compare_convolution(group, bounds, reverse: bool) -> None:
    rank = dist.get_rank(group)
    mine = slice(bounds[rank], bounds[rank + 1])
    x = arguments(False)["x"].requires_grad_()
    kernel, weight = (
        torch.linspace(-1, 1, 16, dtype=x.dtype).view(4, 4),
        torch.linspace(0, 3, 2 * 23 * 4, dtype=x.dtype),
    )
    weight = weight.view(2, 23, 4)
    whole = causal_conv1d(x, kernel, reverse=reverse)
    (expected,) = torch.autograd.grad((whole * weight).sum(), x)
    own = x[:, mine].detach().clone().requires_grad_()
    before = context_parallel.previous_tokens(own, 3, group, reverse)
    y = causal_conv1d(own, kernel, initial_state=before, reverse=reverse)
    torch.testing.assert_close(y, whole[:, mine])
    torch.testing.assert_close(torch.autograd.grad((y * weight[:, mine]).sum(), own)[0], expected[:, mine])


def main(rank: int, world: int, file: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    two = dist.new_group([0, 1])
    cases = [(None, (0, 7, 15, 23)), (None, (0, 0, 20, 23)), *([(two, (0, 9, 23))] if rank < 2 else [])]
    for group, bounds in cases:
        for reverse, is_complex, rule in product((False, True), (False, True), ("euler", "zoh")):
            compare(group, bounds, reverse, is_complex, rule)
        if min(b - a for a, b in pairwise(bounds)) >= 3:
            for reverse in (False, True):
                compare_convolution(group, bounds, reverse)
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)  # before the fork, so that there is no thread to lose
    forked = [get_context("fork").Process(target=main, args=(rank, 3, sys.argv[1])) for rank in range(3)]
    for process in forked:
        process.start()
    for process in forked:
        process.join()
    sys.exit(any(process.exitcode for process in forked))
