"""SaShiMi as a program for the native step loop: the whole network's step, and the draw, in one call.

Each mixer that can be packed has a function here that writes its layers into a Builder, and names where its state lies,
so that a stream goes on from a state of the PyTorch model and back. What cannot be packed (attention, say) raises
Unpackable; the caller then steps in PyTorch.
"""

from collections.abc import Callable, Sequence

import torch
from ssm_kernels import native_build
from ssm_kernels.step_network.native import Network, Streams, lanes
from ssm_kernels.step_network.pack import ACTIVATIONS, Activation, Builder, Weights
from torch import Tensor

from ssmcore.blocks import LayerNorm, Residual, ScalarNorm
from ssmcore.channels.mlp import Mlp
from ssmcore.discretization import Rule, discretize_diagonal
from ssmcore.mixer import Mixer
from ssmcore.mixers.mamba import Mamba
from ssmcore.mixers.mamba_s4 import MambaS4
from ssmcore.mixers.s4 import S4
from ssmcore.mixers.s4d import S4D
from ssmcore.stack import Stack
from ssmcore.state import State

from .backbone import Tier
from .sashimi import SaShiMi

LOG2_E = 1.4426950408889634


class Unpackable(ValueError):
    """The native step loop cannot run this model, or there is no compiler; the text says why."""


def _core_coefficients(b: Builder, *numbers: Tensor) -> Tensor:
    """Complex (d, m) coefficients as (blocks, m, 2 of each, lanes)."""
    planes = torch.stack([t for n in numbers for t in (n.real, n.imag)], -1)  # (d, m, 2 of each)
    return b.blocks(planes.flatten(1)).contiguous()


def _pack_diagonal(
    b: Builder, mixer: S4D | MambaS4, source: int, to: int, path: Sequence[str], rule: Rule, activation: Activation
) -> None:
    """A diagonal core from `source` to `to`."""
    A, B, C, dt = (t.detach().to(torch.promote_types(t.dtype, torch.float64)) for t in mixer.continuous())
    decay, weight = discretize_diagonal(A, B, dt[:, None], rule)
    both = 2 if A.is_complex() else 1
    decay, weight, C = (t.to(torch.complex128) for t in (decay, weight, C))
    _check_drive(weight, type(mixer).__name__)
    d, m = decay.shape
    state = b.remember(b.whole(d) * m * 2)
    places = b.block_places(state, d, 2 * m).unflatten(1, (m, 2))
    if both == 2:
        b.slot([*path, "ssm"], places, weight.to(torch.complex64))
    else:
        b.slot([*path, "ssm"], places[..., 0], weight.real.float())
    w = _core_coefficients(b, decay, both * (C * weight).conj())
    b.emit(
        "diagonal", n=d, k=m, from_=source, to=to, state=state, w=w, bias=b.pad(mixer.D),
        activation=ACTIVATIONS.index(activation),
    )  # fmt: skip


def _pack_s4d(b: Builder, mixer: S4D, x: int, room: "Room", path: Sequence[str]) -> None:
    _pack_diagonal(b, mixer, room.u, room.y, path, mixer.config.rule, "gelu")
    gated = mixer.config.out == "glu"
    b.linear(mixer.out_proj.weight, mixer.out_proj.bias, room.y, x, "glu_added" if gated else "added")


def _pack_s4(b: Builder, mixer: S4, x: int, room: "Room", path: Sequence[str]) -> None:
    """One bilinear step of diag(Λ) - P Q*, multiplied out: see `low_rank` in native.c."""
    Lambda, P, Q, B, C = (t.detach().to(torch.complex128) for t in mixer.continuous())
    half = mixer.log_dt.detach().double().exp()[:, None] / 2
    inverse = 1 / (1 - half * Lambda)
    E, F, G = inverse * (1 + half * Lambda), half * inverse * P, 2 * half * inverse * B
    _check_drive(G, "S4")

    def project(t: Tensor) -> Tensor:
        return 2 * (Q.conj() * t).sum(-1, keepdim=True).real

    share = 1 / (1 + project(F))
    q = 2 * share * Q.conj() * (1 + E) * G
    d, m = Lambda.shape
    state = b.remember(b.whole(d) * m * 2)
    b.slot([*path, "ssm"], b.block_places(state, d, 2 * m).unflatten(1, (m, 2)), G.to(torch.complex64), flat=True)
    b.emit(
        "low_rank", n=d, k=m, from_=room.u, to=room.y, state=state, bias=b.pad(mixer.D),
        w=_core_coefficients(b, E, F / G, q.conj(), 2 * (C * G).conj()), scale=b.pad((share * project(G))[:, 0]),
    )  # fmt: skip
    gated = mixer.config.out == "glu"
    b.linear(mixer.out_proj.weight, mixer.out_proj.bias, room.y, x, "glu_added" if gated else "added")


def _pack_mamba(b: Builder, mixer: Mamba, x: int, room: "Room", path: Sequence[str]) -> None:
    c, d = mixer.config, mixer.d_inner
    if c.rule != "euler":
        raise Unpackable(f"Mamba with rule {c.rule!r} is not packed, only 'euler'")
    rows = mixer.in_proj.weight
    u, z, y, projected = room.wide[:4]
    biases = [None, None] if mixer.in_proj.bias is None else list(mixer.in_proj.bias.chunk(2))
    b.linear(rows[:d], biases[0], room.u, u)
    b.linear(rows[d:], biases[1], room.u, z)
    conv_bias = torch.zeros(d) if mixer.conv1d.bias is None else mixer.conv1d.bias
    b.conv(mixer.conv1d.weight[:, 0], conv_bias, u, [*path, "conv"])
    # What makes the steps is small, and an error in it grows with time: it stays float32.
    b.linear(mixer.x_proj.weight, None, u, projected, exact=True)
    b.linear(mixer.dt_proj.weight, mixer.dt_proj.bias, projected, y, exact=True)
    A = mixer.poles().detach()
    n, pairs = A.shape[1], A.is_complex()
    state = b.remember(b.whole(d) * n * (2 if pairs else 1))
    places = b.block_places(state, d, n * (2 if pairs else 1))
    w = torch.stack([A.real * LOG2_E, A.imag], -1).flatten(1) if pairs else A * LOG2_E
    b.slot([*path, "ssm"], places.unflatten(1, (n, 2)) if pairs else places, torch.ones(d, n) + 0j if pairs else None)
    b.emit(
        "scan_pairs" if pairs else "scan", n=d, k=n, from_=u, to=y, state=state, other=projected + mixer.dt_rank,
        jump=z, w=b.blocks(w), bias=b.pad(mixer.D),
    )  # fmt: skip
    b.linear(mixer.out_proj.weight, mixer.out_proj.bias, y, x, "added")


def _pack_mamba_s4(b: Builder, mixer: MambaS4, x: int, room: "Room", path: Sequence[str]) -> None:
    d, rows = mixer.d_inner, mixer.in_proj.weight
    u, z, y = room.wide[:3]
    b.linear(rows[:d], None, room.u, u)
    b.linear(rows[d:], None, room.u, z)
    b.conv(mixer.conv1d.weight[:, 0], mixer.conv1d.bias, u, [*path, "conv"])
    _pack_diagonal(b, mixer, u, y, path, "zoh", "none")
    b.emit("gate", n=d, from_=z, to=y)
    b.linear(mixer.out_proj.weight, None, y, x, "added")


def _pack_mlp(b: Builder, mixer: Mlp, x: int, room: "Room", path: Sequence[str]) -> None:
    b.linear(mixer.in_proj.weight, mixer.in_proj.bias, room.u, room.wide[0], "gelu")
    b.linear(mixer.out_proj.weight, mixer.out_proj.bias, room.wide[0], x, "added")


PACKERS: dict[type[Mixer], Callable] = {
    S4D: _pack_s4d,
    S4: _pack_s4,
    Mamba: _pack_mamba,
    MambaS4: _pack_mamba_s4,
    Mlp: _pack_mlp,
}


class Room:
    """Scratch vectors of one tier: u after the norm, y after a core, and four wide ones."""

    def __init__(self, b: Builder, tier: Tier):
        widest = [tier.width]
        for module in tier.stage.mixers:
            if isinstance(module, Mlp):
                widest.append(module.in_proj.out_features)
            elif isinstance(module, Mamba | MambaS4):
                widest.append(module.d_inner)
            if isinstance(module, Mamba):
                widest.append(module.x_proj.out_features)
        self.u, self.y = b.scratch(tier.width), b.scratch(tier.width)
        self.wide = [b.scratch(max(widest)) for _ in range(4)]


def _check_drive(weight: Tensor, name: str) -> None:
    """The packed state is divided by its input weight."""
    if not bool((weight.abs() > 1e-20).all()):
        raise Unpackable(f"{name}: a pole has input weight 0")


def _pack_branch(b: Builder, branch: Residual, x: int, room: Room, path: Sequence[str]) -> None:
    if branch.placement != "pre" or not isinstance(branch.norm, LayerNorm | ScalarNorm):
        raise Unpackable("only residual branches with a layer norm before them are packed")
    if type(branch.mixer) not in PACKERS:
        raise Unpackable(f"{type(branch.mixer).__name__} is not packed, only {', '.join(k.__name__ for k in PACKERS)}")
    norm, d = branch.norm, branch.mixer.d_model
    if isinstance(norm, ScalarNorm):
        b.norm(norm.scale.expand(d), torch.zeros(d), norm.eps, x, room.u, float(norm.shift))
    else:
        b.norm(norm.weight, norm.bias, norm.eps, x, room.u)
    PACKERS[type(branch.mixer)](b, branch.mixer, x, room, path)


def _branches(stage: Stack, path: Sequence[str]) -> list[tuple[Residual, list[str]]]:
    """The branches of a stage, and the keys of their states."""
    return [
        (branch, [*path, str(i), str(j)])
        for i, layer in enumerate(stage._layers())
        for j, branch in enumerate(layer.each())
    ]


def _pack_tier(b: Builder, tier: Tier, x: int, biases: list[int], path: list[str], pools: list[tuple]) -> None:
    """The tier's instructions, on the vector x, which it turns into its output."""
    room, d = Room(b, tier), tier.width
    if biases:
        b.emit("recall", n=d, to=x, state=biases[0])
    stage = _branches(tier.stage, [*path, "stage"])
    skip = b.scratch(d)
    if tier.is_centre:
        _pack_around(b, stage, x, skip, room, d)
        return
    entered = []
    for branch, at in _branches(tier.way_down, [*path, "way_down"]) if tier.way_down is not None else ():
        entered.append(b.scratch(d))
        b.emit("copy", n=d, from_=x, to=entered[-1])
        _pack_branch(b, branch, x, room, at)
    factor, inner = tier.down.factor, b.scratch(tier.inner.width)
    slow, pending, ready = b.scratch(d), b.remember(b.whole(d) * factor), b.remember(b.whole(d) * factor)
    phase, b.integers = b.integers, b.integers + 1
    pools.append((path, phase, factor, d, b.whole(d), pending, ready))
    gate = b.emit("pool", n=d, k=factor, from_=x, to=slow, state=pending, other=ready, phase=phase)
    down, up = tier.down.linear, tier.up.linear
    # The arena holds token after token with whole vectors each; the maps have the channels outside and tokens inside.
    W = torch.nn.functional.pad(down.weight.unflatten(1, (d, factor)).transpose(1, 2), (0, b.whole(d) - d))
    b.linear(W.flatten(1), down.bias, 0, inner, source_state=pending)
    _pack_tier(b, tier.inner, inner, biases[1:], [*path, "inner"], pools)
    W = torch.nn.functional.pad(up.weight.unflatten(0, (d, factor)).transpose(0, 1), (0, 0, 0, b.whole(d) - d))
    bias = torch.nn.functional.pad(up.bias.unflatten(0, (d, factor)).T, (0, b.whole(d) - d))
    b.linear(W.flatten(0, 1), bias.flatten(), inner, 0, to_state=ready)
    b.instructions[gate].jump = len(b.instructions)
    b.emit("add", n=d, from_=slow, to=x)
    if tier.way_down is None:
        _pack_around(b, stage, x, skip, room, d)
        return
    for branch, at in stage:
        _pack_branch(b, branch, x, room, at)
        b.emit("add", n=d, from_=entered.pop(), to=x)


def _pack_around(b: Builder, stage: list, x: int, skip: int, room: Room, d: int) -> None:
    """A stage with a skip around the whole of it."""
    b.emit("copy", n=d, from_=x, to=skip)
    for branch, at in stage:
        _pack_branch(b, branch, x, room, at)
    b.emit("add", n=d, from_=skip, to=x)


class Packed:
    """A SaShiMi whose steps run natively.

    Args:
        model: On the CPU; later changes of its weights are not seen.
        weights: Format of the linear maps.
    Raises:
        Unpackable: A mixer has no packed form, or there is no compiler.
    """

    def __init__(self, model: SaShiMi, weights: Weights = "float32"):
        if (reason := native_build.why_unavailable()) is not None:
            raise Unpackable(reason)
        self.model, self.weights = model, weights
        b = Builder(lanes(), weights)
        config, self.pools = model.config, []
        x, logits = b.scratch(config.d_model), b.scratch(config.levels)
        self.biases = [b.remember(width) for width in config.widths] if config.labels else []
        with torch.no_grad():
            b.embed(model.embedding.weight, x)
            _pack_tier(b, model.backbone, x, self.biases, ["backbone"], self.pools)
            b.norm(model.norm.weight, model.norm.bias, model.norm.eps, x, x)
            b.linear(model.head.weight, model.head.bias, x, logits)
        self.network = Network(b, logits, config.levels)

    def streams(self, state: State, newest: Tensor, position: int = 0) -> Streams:
        """Streams that go on from a state of the PyTorch model.

        Args:
            state: Of b clips, all with the same number of samples.
            newest: The level that is fed next, shape (b,).
            position: Samples made so far, which the draws count by.
        """
        streams = self.network.streams(len(newest), 0)
        streams.registers[:, 0], streams.registers[:, 1] = newest, position
        for slot in self.network.slots:
            self.network.write(streams, slot, _at(state, slot.path))
        for path, phase, factor, d, width, pending, ready in self.pools:
            waiting, left = (_at(state, [*path, name]) for name in ("pending", "ready"))
            count = waiting.shape[1]
            streams.registers[:, phase] = count
            for offset, first, values in ((pending, 0, waiting), (ready, count, left)):
                room = streams.arenas[:, offset : offset + factor * width].unflatten(1, (factor, width))
                room[:, first : first + values.shape[1], :d] = values
        for offset, bias in zip(self.biases, self.model.biases(state["label"]), strict=True):
            streams.arenas[:, offset : offset + bias.shape[2]] = bias[:, 0].detach()
        return streams

    def state(self, streams: Streams, label: Tensor) -> State:
        """The PyTorch model's state of streams that all have the same number of samples; label as it has it, (b, k)."""
        state = self.model.init_state(len(streams.arenas), label=label)
        for slot in self.network.slots:
            _at(state, slot.path[:-1])[slot.path[-1]] = self.network.read(streams, slot)
        for path, phase, factor, d, width, pending, ready in self.pools:
            count, tier = int(streams.registers[0, phase]), _at(state, path)
            for name, offset, part in (("pending", pending, slice(0, count)), ("ready", ready, slice(count, factor))):
                room = streams.arenas[:, offset : offset + factor * width].unflatten(1, (factor, width))
                tier[name] = room[:, part, :d].clone()
        return state


def _at(state: State, path: Sequence[str]):
    for key in path:
        state = state[key]
    return state
