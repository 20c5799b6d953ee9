"""The backbone: layers of residual branches, written as a pattern.

    Stack(64, "(mamba/glu)*4")
    Stack(64, "(R/geglu R/geglu W/geglu)*2", mixers={"R": "rglru", "W": {"name": "attention", "window": 128}})
    Stack(64, "mamba2 mlp mamba2 mlp attention mlp")                       one branch a layer

Grammar: a pattern is a sequence of layers and groups; a group is "(pattern)"; either may be repeated, "*n"; a layer is
one or more names joined by "/", each a residual branch of its own. A name is a registered mixer or channel mixer, or a
key of `mixers`. A stack is itself a Mixer: its state holds one state a branch, {"0": {"0": ..., "1": ...}, ...}.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .array_types import Tokens
from .blocks import NORMS, Placement, Residual
from .mixer import Context, Mixer, Unsupported
from .mixers import MixerSpec, build_mixer, registered_mixers
from .registry import resolve
from .state import State

_TOKENS = re.compile(r"\s*(?:(?P<name>[A-Za-z_][\w.-]*)|(?P<number>\d+)|(?P<sign>[()*/]))")


class Layer(nn.Module):
    """Residual branches one after the other, (b, l, d) to (b, l, d); see Residual."""

    def __init__(self, branches: Sequence[Residual]):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def each(self) -> list[Residual]:
        """The branches in order. Raises nothing."""
        return [branch for branch in self.branches if isinstance(branch, Residual)]

    def init_state(self, batch: int, device=None, dtype=None) -> State:
        """Of every branch; see Mixer.init_state. Raises Unsupported if one has none."""
        return {str(i): b.mixer.init_state(batch, device=device, dtype=dtype) for i, b in enumerate(self.each())}

    def forward(self, x: Tokens, state: State | None = None, ctx: Context | None = None) -> tuple[Tokens, State]:
        """Run the branches on the residual stream x, shape (b, l, d) or packed; raises as the mixers do."""
        ctx = Context() if ctx is None else ctx
        new: State = {}
        for i, branch in enumerate(self.each()):
            x, left = branch(x, None if state is None else state[str(i)], ctx)
            if left is not None:
                new[str(i)] = left
        return x, new


class Stack(Mixer):
    """A backbone of d_model channels, (b, l, d) to (b, l, d).

    Args:
        d_model: Channels of the tokens.
        pattern: The layers; see the head of this file.
        mixers: What names in the pattern stand for: options of the registered mixer of that name ({"d_state": 8}), a
            dict with a "name" of its own, a registered name, or a function of d_model.
        norm: "rms" or "layer".
        placement: Where the norms stand: "pre", "post" or "sandwich".
        dropout: Rate on each branch's output.
        drop_path: Rate of stochastic depth at the last layer; rises evenly from 0 at the first.
        final_norm: Normalise the output ("pre" and "sandwich" leave it unnormalised otherwise).
        residual_float32: Carry the residual stream in float32 when tokens or weights are narrower.
        causal: Insist that the stack be causal and have a state.
    Raises:
        ValueError: The pattern does not parse, a name or option is unknown, or `mixers` holds a name that is not in it.
        Unsupported: `causal`, and a mixer is not.
    """

    def __init__(
        self,
        d_model: int,
        pattern: str,
        *,
        mixers: Mapping[str, MixerSpec] | None = None,
        norm: str = "rms",
        placement: Placement = "pre",
        dropout: float = 0.0,
        drop_path: float = 0.0,
        final_norm: bool = True,
        residual_float32: bool = True,
        causal: bool = False,
    ):
        super().__init__(d_model)
        self.pattern, self.residual_float32 = pattern, residual_float32
        self.gradient_checkpointing = False
        names = parse_pattern(pattern)
        if unused := set(mixers or ()) - {name for layer in names for name in layer}:
            raise ValueError(f"Stack: mixers holds {sorted(unused)}, names that the pattern does not use: {pattern!r}")
        rates = torch.linspace(0, drop_path, len(names)).tolist()
        layers = []
        for index, (layer, rate) in enumerate(zip(names, rates, strict=True)):
            specs = [_complete(name, mixers or {}, index, len(names)) for name in layer]
            built = [build_mixer(spec, d_model) for spec in specs]
            options = {"norm": norm, "placement": placement, "dropout": dropout, "drop_path": rate}
            layers.append(Layer([Residual(mixer, **options) for mixer in built]))
        self.layers = nn.ModuleList(layers)
        self.norm = resolve(norm, NORMS, "norm")(d_model) if final_norm else nn.Identity()
        self._declare(causal)
        if placement == "pre":
            self._scale_residual_branches()

    @property
    def mixers(self) -> list[Mixer]:
        """The mixers of all branches, in order."""
        return [branch.mixer for layer in self._layers() for branch in layer.each()]

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """The initial state of every branch; see Mixer.init_state.

        Raises:
            Unsupported: A mixer has no state.
        """
        return {str(i): layer.init_state(batch, device, dtype) for i, layer in enumerate(self._layers())}

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State]:
        """All layers on x, (b, l, d) or packed; see Mixer.mix. Raises as the mixers do."""
        # Layers write what they export into a dict of this call's own.
        ctx = Context(ctx.rows, ctx.dt, dict(ctx.shared or {}), ctx.return_state)
        stream = x.to(torch.promote_types(x.dtype, torch.float32)) if self.residual_float32 else x
        new: State = {}
        for i, layer in enumerate(self._layers()):
            before = None if state is None else state[str(i)]
            if self.gradient_checkpointing and self.training:
                stream, new[str(i)] = checkpoint(layer, stream, before, ctx, use_reentrant=False)
            else:
                stream, new[str(i)] = layer(stream, before, ctx)
        return self.norm(stream), new

    def _layers(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def _declare(self, causal: bool) -> None:
        """What the stack can do is what all its mixers can."""
        mixers = self.mixers
        for flag in ("causal", "recurrent", "bounded_state", "takes_rows", "takes_dt"):
            setattr(self, flag, all(getattr(mixer, flag) for mixer in mixers))
        needs: set[str] = set()
        exports: set[str] = set()
        for mixer in mixers:
            needs |= mixer.needs - exports
            exports |= mixer.exports
        self.needs, self.exports = frozenset(needs), frozenset(exports)
        if causal and not (self.causal and self.recurrent):
            culprits = sorted({type(m).__name__ for m in mixers if not (m.causal and m.recurrent)})
            names = ", ".join(culprits)
            raise Unsupported(f"Stack: pattern {self.pattern!r} must be causal and have a state; these cannot: {names}")

    def _scale_residual_branches(self) -> None:
        """Keep the variance of the sum of all branches that of one: their outputs shrink by its square root."""
        mixers = self.mixers
        with torch.no_grad():
            for mixer in mixers:
                for name in mixer.residual_out:
                    mixer.get_parameter(name).div_(len(mixers) ** 0.5)


def parse_pattern(pattern: str) -> list[tuple[str, ...]]:
    """Write a pattern out: for each layer the names of its branches. No shapes.

    Args:
        pattern: e.g. "(M/glu)*2 A" gives [("M", "glu"), ("M", "glu"), ("A",)].
    Raises:
        ValueError: It does not follow the grammar at the head of this file; says where, and what was expected.
    """
    words: list[tuple[str, str, int]] = []
    at = 0
    text = pattern.rstrip()
    while at < len(text):
        match = _TOKENS.match(text, at)
        if match is None:
            raise ValueError(f"parse_pattern: {pattern!r} has an unexpected {text[at:].lstrip()[0]!r} at {at}")
        kind = match.lastgroup or ""
        words.append((kind, match[kind], match.start(kind)))
        at = match.end()
    words.append(("end", "the end", len(text)))
    layers, rest = _parse_sequence(pattern, words)
    if rest[0][0] != "end":
        raise _unexpected(pattern, rest[0], "a name or '('")
    if not layers:
        raise ValueError("parse_pattern: the pattern has no layers")
    return layers


def _parse_sequence(pattern: str, words: list) -> tuple[list[tuple[str, ...]], list]:
    """Layers and groups up to a closing parenthesis or the end."""
    layers: list[tuple[str, ...]] = []
    while words[0][0] == "name" or words[0][1] == "(":
        if words[0][1] == "(":
            inner, rest = _parse_sequence(pattern, words[1:])
            if rest[0][1] != ")" or not inner:
                raise _unexpected(pattern, rest[0], "a name" if not inner else "')'")
            words = rest[1:]
        else:
            branches = [words[0][1]]
            words = words[1:]
            while words[0][1] == "/":
                if words[1][0] != "name":
                    raise _unexpected(pattern, words[1], "a name after '/'")
                branches.append(words[1][1])
                words = words[2:]
            inner = [tuple(branches)]
        if words[0][1] == "*":
            if words[1][0] != "number":
                raise _unexpected(pattern, words[1], "a number after '*'")
            inner = inner * int(words[1][1])
            words = words[2:]
        layers += inner
    return layers, words


def _unexpected(pattern: str, word: tuple[str, str, int], expected: str) -> ValueError:
    return ValueError(f"parse_pattern: {pattern!r} has {word[1]!r} at {word[2]}, expected {expected}")


def _complete(name: str, mixers: Mapping[str, MixerSpec], index: int, count: int) -> MixerSpec:
    """What a name in a pattern stands for; a mixer whose initialisation depends on its depth is told that too."""
    spec = mixers.get(name, name)
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping):
        return spec
    spec = {"name": name, **spec}
    kind = resolve(spec["name"], registered_mixers(), "mixer")
    depth: dict[str, Any] = {"layer_index": index, "num_layers": count}
    known = {f.name for f in fields(kind.Config)}
    return {**{key: value for key, value in depth.items() if key in known}, **spec}
