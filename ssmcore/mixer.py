"""The contract of every sequence mixer: (b, l, d) in, (b, l, d) out, with a state that can be kept and gone on from.

    y, _     = mixer(x)                                       a whole sequence
    y, state = mixer(x, return_state=True)                    ... and what it leaves behind
    y, state = mixer(more, state, reset=..., mask=..., dt=..)  any number of further tokens
    y_t, state = mixer.step(x_t, state)                       one further token

A mixer that is being written implements two methods. `mix` does the work, on one of two layouts it need not tell apart
as long as it hands `ctx.cu_seqlens` to the operators: a plain batch (b, l, d), or packed rows (1, tokens, d) whose
states have one entry a row. `init_state` gives the state before any token. `Mixer.forward` checks the arguments and
turns `reset` and `mask` into rows, so both are exact in every mixer that is made of operators.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from numbers import Integral
from types import NoneType, UnionType
from typing import Any, ClassVar, NoReturn, Union, get_args, get_origin, get_type_hints

import torch
from ssm_kernels.checks import FLOATS, Shapes, check_dtype
from torch import Tensor, nn

from . import state as states
from .array_types import Bool, Float, Mask, SegmentBounds, TimeSteps, Tokens
from .functional import Rows
from .state import State


class Unsupported(ValueError):
    """A mixer was asked for something that its mathematics, or its code, cannot do. Holds no arrays."""


@dataclass(frozen=True)
class ParamSpec:
    """How an optimiser should treat one parameter."""

    decay: bool = True
    """Whether weight decay applies."""
    lr_scale: float = 1.0
    """Factor on the learning rate."""


@dataclass(frozen=True)
class Context:
    """What goes with the tokens through a whole stack."""

    rows: Rows | None = None
    """Set when the tokens are packed, (1, tokens, d), and the states (r, ...); None for a plain batch."""
    dt: TimeSteps | None = None
    """Scale of each token's step, laid out as the tokens."""
    shared: Mapping[str, Any] | None = None
    """Values by name, from the caller or an earlier layer. A mixer that `exports` a name writes it here."""
    return_state: bool = False
    """Whether the state after the last token is wanted."""

    @property
    def cu_seqlens(self) -> SegmentBounds | None:
        """Bounds of the packed rows, as the operators take them, shape (r + 1,)."""
        return None if self.rows is None else self.rows.cu_seqlens


@dataclass(frozen=True, kw_only=True)
class NoConfig:
    """For mixers without options."""


class Mixer(nn.Module):
    """Base of every sequence mixer, wrapper and stack.

    Tokens are (b, l, d) with d = d_model; states are dicts of tensors (b, ...), never changed in place.
    """

    Config: ClassVar[type] = NoConfig
    """Frozen keyword-only dataclass of the options."""
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    """Options that the property suite builds the mixer with."""

    title: ClassVar[str] = ""
    """What it is, in a few words for the table of all mixers (ssmcore.table)."""
    operator: str = ""
    """What computes it: operators of ssm_kernels, "torch", or "loop" over the tokens."""
    selective: bool = False
    """How the state moves depends on the tokens."""
    causal: bool = True
    """No output depends on a later token."""
    recurrent: bool = True
    """Has a state: `init_state` and `step` work, and a sequence may be fed in pieces."""
    bounded_state: bool = True
    """The state's size does not depend on how many tokens went in."""
    lti: bool = False
    """Linear and time-invariant inside: has `core` and `kernel` (see mixers/s4d.py)."""
    takes_rows: bool = True
    """Honours `reset` and `mask`."""
    takes_dt: bool = False
    """Honours `dt`."""
    needs: frozenset[str] = frozenset()
    """Names that must stand in `shared`."""
    exports: frozenset[str] = frozenset()
    """Names that this mixer puts into `shared` for later layers."""
    residual_out: tuple[str, ...] = ()
    """Parameters whose scale is the output's: a Stack divides them by the root of the number of residual branches."""

    def __init__(self, d_model: int, config: Any = None):
        super().__init__()
        if not isinstance(d_model, Integral) or d_model < 1:
            raise ValueError(f"{type(self).__name__}: d_model={d_model!r}, expected an integer of at least 1")
        self.d_model = d_model
        self.config = self.Config() if config is None else config
        if not isinstance(self.config, self.Config):
            raise ValueError(
                f"{type(self).__name__}: config is a {type(self.config).__name__}, expected {self.Config.__name__}"
            )

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State | None]:
        """The mixer itself, without checks.

        Args:
            x: A plain batch, shape (b, l, d), or packed rows, shape (1, tokens, d). At least one token.
            state: The state before the first token of each batch item or row; None is the initial one.
            ctx: Rows, steps and shared values.
        Returns:
            y, shape of x; and the state after the last token of each item or row. It may be None when
            `ctx.return_state` is False and `state` is None.
        Raises:
            Unsupported: ctx asks for what only this configuration of the mixer cannot do.
        """
        raise NotImplementedError

    def branch(self, x: Tokens, stream: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State | None]:
        """What a residual block adds to its stream: `mix` of x, unless the mixer has a residual gate of its own.

        Args:
            x: The stream, normalised where the block does so first, shape (b, l, d) or packed.
            stream: The stream itself, shape of x.
            state: As in `mix`.
            ctx: As in `mix`.
        Returns:
            As `mix`.
        Raises:
            Unsupported: As `mix`.
        """
        return self.mix(x, state, ctx)

    def mix_pair(
        self, other: "Mixer", x: Tokens, turned: Tokens, ctx: Context, turned_ctx: Context
    ) -> tuple[Tokens, Tokens]:
        """This mixer over x and another one of its class and configuration over `turned`, both without a state.

        A mixer may override it to share the set-up of its operators between the two.

        Args:
            other: The second mixer; possibly this one.
            x: As in `mix`, shape (b, l, d).
            turned: The second sequence, shape of x.
            ctx: What goes with x.
            turned_ctx: The same for `turned`; the rows are those of ctx.
        Returns:
            Both outputs, shape of x.
        Raises:
            Unsupported: As `mix`.
        """
        return self.mix(x, None, ctx)[0], other.mix(turned, None, turned_ctx)[0]

    def init_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """The state before any token.

        Args:
            batch: Number of batch items, b.
            device: None for the parameters' device.
            dtype: Real type of the state; None for float32, or float64 where the parameters are.
        Returns:
            A dict of tensors (b, ...).
        Raises:
            Unsupported: The mixer is not recurrent.
        """
        self._refuse("has no state")

    def param_spec(self) -> dict[str, ParamSpec]:
        """The parameters that an optimiser should treat otherwise than by default, by their names in this module.

        By default weight decay applies to parameters of two axes or more. No shapes, raises nothing.
        """
        return dict(_child_specs(self))

    def forward(
        self,
        x: Tokens,
        state: State | None = None,
        *,
        reset: Mask | None = None,
        mask: Mask | None = None,
        dt: TimeSteps | None = None,
        shared: Mapping[str, Any] | None = None,
        return_state: bool = False,
    ) -> tuple[Tokens, State | None]:
        """Mix a sequence.

        Args:
            x: Tokens, shape (b, l, d).
            state: What an earlier call left behind; None starts anew.
            reset: True where the state starts anew before a token, shape (b, l).
            mask: True where a token exists, shape (b, l). The others leave the state alone (a `reset` at one of them
                does nothing) and give y = 0; they may stand anywhere: padding on either side, holes.
            dt: Time since the token before, in steps of the training data, shape (b, l); None is 1 everywhere.
            shared: Values by name that the mixer `needs`; not per token.
            return_state: Return the new state even if none was given.
        Returns:
            y, shape of x; and the new state, or None when neither `state` nor `return_state` was given.
        Raises:
            ValueError: A shape, dtype or batch size disagrees, or a needed shared value is missing.
            Unsupported: The mixer cannot honour an argument. It never ignores one.
        """
        self._check(x, state, reset, mask, dt, shared, return_state)
        keep = return_state or state is not None
        rows = None
        if reset is not None or (mask is not None and not bool(mask.all())):
            rows = Rows.of(reset, mask)
        if 0 in x.shape[:2] or (rows is not None and len(rows.positions) == 0):
            initial = state if state is not None or not keep else self.init_state(x.shape[0], device=x.device)
            return torch.zeros_like(x), initial
        if rows is None:
            y, new = self.mix(x, state, Context(None, dt, shared, keep))
            return y, new if keep else None
        if state is not None:
            state = rows.spread(state, self.init_state(rows.count, device=x.device))
        ctx = Context(rows, None if dt is None else rows.pack(dt), shared, keep)
        y, new = self.mix(rows.pack(x), state, ctx)
        return rows.unpack(y), rows.leave(new) if keep and new is not None else None

    def step(
        self,
        x: Float[Tensor, "b d"],
        state: State,
        *,
        reset: Bool[Tensor, "b"] | None = None,
        mask: Bool[Tensor, "b"] | None = None,
        dt: Float[Tensor, "b"] | None = None,
        shared: Mapping[str, Any] | None = None,
    ) -> tuple[Float[Tensor, "b d"], State]:
        """Mix one token: `forward` on a sequence of length 1, without a wait for the device.

        Args:
            x: The token, shape (b, d).
            state: What came before; `init_state` at the start.
            reset, mask, dt, shared: As in `forward`, shape (b,).
        Returns:
            y, shape (b, d), and the new state.
        Raises:
            ValueError, Unsupported: As `forward`.
        """

        def per_token(t: Tensor | None) -> Tensor | None:
            return None if t is None else t[:, None]

        if not self.bounded_state and (reset is not None or mask is not None):
            y, new = self(
                x[:, None], state, reset=per_token(reset), mask=per_token(mask), dt=per_token(dt), shared=shared
            )
            return y[:, 0], new
        self._check(x[:, None], state, per_token(reset), per_token(mask), per_token(dt), shared, True)
        before = state
        if reset is not None:
            before = states.where(reset, self.init_state(x.shape[0], device=x.device), state)
        y, new = self.mix(x[:, None], before, Context(None, per_token(dt), shared, True))
        assert new is not None
        if mask is not None:
            y, new = torch.where(mask[:, None, None], y, 0), states.where(mask, new, state)
        return y[:, 0], new

    def _check(self, x, state, reset, mask, dt, shared, return_state) -> None:
        """Raise at the boundary what would go wrong inside."""
        name = type(self).__name__
        shapes = Shapes(name)
        shapes.sizes["d"], shapes.source["d"] = self.d_model, "d_model"
        shapes.check("x", x, "b l d")
        check_dtype(name, "x", x, FLOATS)
        for argument, t in (("reset", reset), ("mask", mask), ("dt", dt)):
            if t is not None:
                shapes.check(argument, t, "b l")
                check_dtype(name, argument, t, FLOATS if argument == "dt" else (torch.bool,))
        if (reset is not None or mask is not None) and not self.takes_rows:
            self._refuse("takes no reset and no mask")
        if dt is not None and not self.takes_dt:
            self._refuse("takes no dt: its step has no length")
        if (state is not None or return_state) and not self.recurrent:
            self._refuse("has no state")
        if state is not None and (b := states.batch_size(state)) not in (None, x.shape[0]):
            raise ValueError(f"{name}: state has batch size {b}, expected b={x.shape[0]} from x")
        if missing := self.needs - set(shared or ()):
            raise ValueError(f"{name}: needs shared={{{', '.join(sorted(missing))}: ...}}")

    def _refuse(self, what: str) -> NoReturn:
        raise Unsupported(f"{type(self).__name__} {what}")

    def _zeros(self, batch: int, *shape: int, device=None, dtype=None, complex_pairs: bool = False) -> Tensor:
        """Part of an initial state, shape (batch, *shape)."""
        like = next(self.parameters())
        dtype = dtype or torch.promote_types(like.dtype, torch.float32)
        if complex_pairs:
            dtype = torch.promote_types(dtype, torch.complex64)
        return torch.zeros(batch, *shape, device=device or like.device, dtype=dtype)


def config_of(kind: type[Mixer], options: Mapping[str, Any]) -> Any:
    """The configuration of a mixer class from a plain dict. No shapes.

    Args:
        kind: The class.
        options: Values by field name.
    Raises:
        ValueError: A name is no option of the class; gives its near misses and all options. Or a value that must be a
            number, a word or yes or no is something else.
    """
    known = [f.name for f in fields(kind.Config)]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
            raise ValueError(f"{kind.__name__} has no option {name!r}{hint} Options: {', '.join(known) or 'none'}")
    wanted = get_type_hints(kind.Config)
    for name, value in options.items():
        if not _fits(value, wanted[name]):
            words = str(getattr(wanted[name], "__name__", wanted[name])).replace("typing.", "")
            raise ValueError(f"{kind.__name__}: {name}={value!r}, expected {words}")
    return kind.Config(**options)


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a value is of a plain kind, or one of several; what is no plain kind is not judged."""
    if isinstance(wanted, UnionType) or get_origin(wanted) is Union:
        return any(_fits(value, part) for part in get_args(wanted))
    if wanted is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, wanted) if wanted in (bool, str, NoneType) else True


def _child_specs(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, ParamSpec]]:
    """What the mixers inside a module ask for, by the names of the module's parameters."""
    for name, child in module.named_children():
        if isinstance(child, Mixer):
            yield from ((f"{prefix}{name}.{key}", spec) for key, spec in child.param_spec().items())
        else:
            yield from _child_specs(child, f"{prefix}{name}.")
