"""Calls native.c: packs what it wants packed, hands out its buffers, unpacks its gradients."""

import ctypes
import functools
from itertools import accumulate
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import buffers, native_build
from ..native_call import INTEGER, POINTER, NativeCall, covers, output_like, structure
from ..rows import Row

RULE_CODES = {"euler": 0, "zoh": 1, "bilinear": 2}
Problem = structure(
    ("batch length rows d n groups routes row_groups blocks", INTEGER),
    ("rule softplus reverse constant_B constant_C threads", INTEGER),
    ("row first_chunk order x dt z A B C D bias h0", POINTER),
    ("x_batch x_step dt_batch dt_step z_batch z_step", INTEGER),
    ("B_batch B_step B_group C_batch C_step C_group", INTEGER),
    ("x_route dt_route y_batch y_step dx_route ddt_route", INTEGER),
    ("y last boundaries dy dlast", POINTER),
    ("dy_batch dy_step", INTEGER),
    ("dx ddt dz dA dB dC dD dbias dh0", POINTER),
)


@functools.cache
def library(double: bool, is_complex: bool) -> ctypes.CDLL:
    """native.c for one element type, built on first use."""
    defines = ["-DSSM_DOUBLE"] * double + ["-DSSM_COMPLEX"] * is_complex
    lib = native_build.load(Path(__file__).with_name("native.c"), tuple(defines))
    for name in ("scan_tile", "scan_chunk"):
        getattr(lib, name).restype = INTEGER
    return lib


def _library_for(A: Tensor) -> ctypes.CDLL:
    return library(A.dtype in (torch.float64, torch.complex128), A.is_complex())


def groups_of(B: Tensor, C: Tensor, order: Tensor | None) -> int:
    """How many groups of channels have a B and C of their own: each route, where there are routes."""
    if order is not None:
        return order.shape[0]
    return next((M.shape[2] for M in (B, C) if M.ndim == 4), 1)


class Layout:
    """How channels are cut into tiles: groups of B and C first, each padded up to whole tiles."""

    def __init__(self, lib: ctypes.CDLL, d: int, groups: int):
        self.tile, self.groups, self.a_group = lib.scan_tile(), groups, d // groups
        self.tiles = groups * -(-self.a_group // self.tile)
        self.whole = self.a_group % self.tile == 0

    def pack(self, t: Tensor) -> Tensor:
        """(..., d, n) real or complex to (..., tile, n, plane, TILE) real."""
        if self.whole and not t.is_complex():  # no padding: fewer calls, which count where the tensors are small
            return t.unflatten(-2, (self.tiles, self.tile)).transpose(-1, -2).unsqueeze(-2).contiguous()
        t = torch.view_as_real(t) if t.is_complex() else t[..., None]
        lead, n, planes = t.shape[:-3], t.shape[-2], t.shape[-1]
        t = t.reshape(*lead, self.groups, self.a_group, n, planes)
        t = F.pad(t, (0, 0, 0, 0, 0, -self.a_group % self.tile))
        return t.reshape(*lead, self.tiles, self.tile, n, planes).movedim(-3, -1).contiguous()

    def unpack(self, t: Tensor, is_complex: bool) -> Tensor:
        """The inverse of `pack`."""
        if self.whole and not is_complex:
            return t.squeeze(-2).transpose(-1, -2).flatten(-3, -2).contiguous()
        t = t.movedim(-1, -3)
        lead, n, planes = t.shape[:-4], t.shape[-2], t.shape[-1]
        t = t.reshape(*lead, self.groups, -1, n, planes)[..., : self.a_group, :, :]
        t = t.reshape(*lead, self.groups * self.a_group, n, planes)
        return torch.view_as_complex(t.contiguous()) if is_complex else t[..., 0].contiguous()


def boundary_count(tokens: int, rows: int, chunk: int) -> int:
    """At least as many chunks as any cut of `tokens` steps into `rows` rows has."""
    return tokens // chunk + rows


def boundaries_shape(A: Tensor, tokens: int, rows: int, groups: int) -> tuple[int, ...]:
    """Shape of what forward saves for backward: h at every chunk's start, packed."""
    lib = _library_for(A)
    layout = Layout(lib, A.shape[:-1].numel(), groups)
    return (
        boundary_count(tokens, rows, lib.scan_chunk()),
        layout.tiles,
        A.shape[-1],
        2 if A.is_complex() else 1,
        layout.tile,
    )


class Call(NativeCall):
    """One call's problem: inputs set, outputs still to be pointed at."""

    def __init__(
        self, x, dt, A, B, C, D, z, dt_bias, initial_state, order, rows: list[Row], dt_softplus, reverse, rule
    ):
        self.lib = _library_for(A)
        groups, routes = groups_of(B, C, order), 1 if order is None else order.shape[0]
        b, l, d = dt.shape[-3:]
        n, planes = A.shape[-1], 2 if A.is_complex() else 1
        self.layout = Layout(self.lib, routes * d, groups)
        sizes = dict(batch=b, length=l, rows=len(rows), d=routes * d, n=n, groups=groups, routes=routes)
        super().__init__(Problem(**sizes), rows)
        p = self.problem
        p.rule, p.softplus, p.reverse = RULE_CODES[rule], dt_softplus, reverse
        p.threads = torch.get_num_threads()
        self.point("order", None if order is None else order.to(torch.int64).contiguous())
        p.row_groups, p.blocks = self._shares(len(rows), p.threads)
        chunk = self.lib.scan_chunk()
        chunks = (-(-row.length // chunk) for row in rows)
        self.point_integers("first_chunk", accumulate(chunks, initial=0))
        for name, t in (("x", x), ("dt", dt)):
            t = t if t.ndim == 3 or t.stride(3) == 1 else t.contiguous()
            self.point_steps(name, t if t.ndim == 3 else t[0])
            setattr(p, f"{name}_route", t.stride(0) if t.ndim == 4 else 0)
            setattr(p, f"d{name}_route", b * l * d if t.ndim == 4 else 0)
        self.point_steps("z", z)
        for name, M in (("B", B), ("C", C)):
            setattr(p, f"constant_{name}", M.ndim == 2)
            if M.ndim == 2:
                self.point(name, self.layout.pack(M))
                continue
            M = M[:, :, None] if M.ndim == 3 else M if order is None else M.movedim(0, 2)
            M = (M if M.stride(-1) == 1 else M.contiguous()).expand(-1, -1, groups, -1)
            self.point(name, M)
            for key, stride in zip(("batch", "step", "group"), M.stride(), strict=False):
                setattr(p, f"{name}_{key}", stride * planes)
        self.point("A", self.layout.pack(A.flatten(0, -2)))
        self.point_packed("D", D)
        self.point_packed("bias", dt_bias)
        self.point("h0", None if initial_state is None else self.pack_states(initial_state))
        p.y_batch, p.y_step = l * d, d

    def pack_states(self, t: Tensor) -> Tensor:
        """States (r, d, n), or those of k routes (k, r, d, n), packed."""
        return self.layout.pack(t if t.ndim == 3 else t.transpose(0, 1).flatten(1, 2))

    def unpack_states(self, t: Tensor, like: Tensor) -> Tensor:
        """The inverse, with as many axes as A, `like`, has and the rows."""
        t = self.layout.unpack(t, like.is_complex())
        return t if like.ndim == 2 else t.unflatten(1, like.shape[:2]).transpose(0, 1).contiguous()

    def _shares(self, rows: int, threads: int) -> tuple[int, int]:
        """Row groups and channel blocks: enough tasks for the threads, and few copies of dA and dB."""
        if threads == 1:
            return max(1, min(rows, 8)), 1
        row_groups, tiles = max(1, min(rows, 4 * threads)), self.layout.tiles // self.problem.routes
        # Narrow blocks would have two cores write neighbouring cache lines at the same time.
        blocks = 2 * threads if tiles >= 8 * threads else threads
        return row_groups, min(tiles, -(-blocks // row_groups))

    def packed(self, rows: int, A: Tensor, zero: bool = False) -> Tensor:
        """A buffer for `rows` packed (d, n) arrays."""
        shape = (rows, self.layout.tiles, A.shape[-1], 2 if A.is_complex() else 1, self.layout.tile)
        made = buffers.empty(shape, A.real.dtype)
        return made.zero_() if zero else made


def forward(x, dt, A, B, C, D, z, dt_bias, initial_state, order, rows, dt_softplus, reverse, rule, save: bool):
    """y (b, l, d), last state (rows, d, n) and the boundaries that `backward` wants (empty unless `save`)."""
    call = Call(x, dt, A, B, C, D, z, dt_bias, initial_state, order, rows, dt_softplus, reverse, rule)
    one = dt if dt.ndim == 3 else dt[0]
    y, tokens = output_like(one, rows), one.shape[0] * one.shape[1]
    shape = boundaries_shape(A, tokens, len(rows), call.layout.groups) if save else (0,)
    boundaries = buffers.empty(shape, A.real.dtype)
    last = call.packed(len(rows), A)
    call.point("y", y)
    call.point("last", last)
    if save:
        call.point("boundaries", boundaries)
    call.lib.scan_forward_all(ctypes.byref(call.problem))
    return y, call.unpack_states(last, A), boundaries


def backward(
    dy, dlast, boundaries, x, dt, A, B, C, D, z, dt_bias, initial_state, order, rows, dt_softplus, reverse, rule
):
    """Gradients (dx, ddt, dA, dB, dC, dD, dz, ddt_bias, dinitial_state); None where the input is None."""
    call = Call(x, dt, A, B, C, D, z, dt_bias, initial_state, order, rows, dt_softplus, reverse, rule)
    p, layout, is_complex = call.problem, call.layout, A.is_complex()
    b, l, _ = dt.shape[-3:]
    call.point_steps("dy", dy)
    call.point("dlast", None if dlast is None else call.pack_states(dlast))
    call.point("boundaries", boundaries)
    dx, ddt = (call.point(name, _gradient_like(t, rows)) for name, t in (("dx", x), ("ddt", dt)))
    dz = None if z is None else call.point("dz", output_like(z, rows))
    dA = call.point("dA", call.packed(p.row_groups, A, zero=True))
    dD, dbias = (call.point(name, torch.empty(p.row_groups, p.d, dtype=x.dtype)) for name in ("dD", "dbias"))
    dh0 = None if initial_state is None else call.point("dh0", call.packed(len(rows), A))

    def projection_buffer(name: str, M: Tensor) -> Tensor:
        if M.ndim == 2:
            return call.point(name, call.packed(p.row_groups, A, zero=True))
        shape = (p.blocks, b, l, layout.groups, A.shape[-1], *([2] if is_complex else []))
        return call.point(name, buffers.empty(shape, x.dtype).zero_())

    dB, dC = projection_buffer("dB", B), projection_buffer("dC", C)
    call.lib.scan_backward_all(ctypes.byref(p))

    def projection_gradient(total: Tensor, M: Tensor) -> Tensor:
        total = total.sum(0) if total.shape[0] > 1 else total[0]
        if M.ndim == 2:
            return layout.unpack(total, is_complex)
        total = torch.view_as_complex(total) if is_complex else total
        if order is not None:
            total = total.sum(2) if M.ndim == 3 else total.movedim(2, 0).contiguous()
        return total.reshape(M.shape)

    return (
        dx,
        ddt,
        layout.unpack(dA.sum(0), is_complex).reshape(A.shape),
        projection_gradient(dB, B),
        projection_gradient(dC, C),
        None if D is None else dD.sum(0).reshape(D.shape),
        dz,
        None if dt_bias is None else dbias.sum(0).reshape(dt_bias.shape),
        None if dh0 is None else call.unpack_states(dh0, A),
    )


def _gradient_like(t: Tensor, rows: list[Row]) -> Tensor:
    """A contiguous output of the shape of x or dt, (b, l, d) or (k, b, l, d); zeros where the rows leave steps out."""
    if t.ndim == 3:
        return output_like(t, rows)
    made = buffers.empty(tuple(t.shape), t.dtype)
    return made if covers(rows, t.shape[1], t.shape[2]) else made.zero_()
