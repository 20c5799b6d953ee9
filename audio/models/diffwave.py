"""DiffWave with a SaShiMi U-Net: a clip out of noise, all samples at once, in a chosen number of steps.

    x[t] = sqrt(a[t]) wave + sqrt(1 - a[t]) noise,   a[t] = prod (1 - beta);      the network says which noise it was
    x[t-1] = (x[t] - beta[t] / sqrt(1 - a[t]) noise(x[t], t)) / sqrt(1 - beta[t]) + sigma[t] z

Each S4D layer looks both ways (one system, two read-outs), and is told the noise level, and the label where there is
one, as an offset of its input. With D = 128 the network has the paper's 23.0M parameters.
Source: Kong et al. 2021, DiffWave; Ho et al. 2020, DDPM, algorithms 1 and 2; Goel et al. 2022, SaShiMi, sec. 4.3.

    b  batch      t  samples, or the step where it counts noise levels      d  d_model      e  d_step
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmcore.array_types import Float, Int, Tokens
from ssmcore.blocks import LayerNorm
from ssmcore.discretization import discretize_diagonal
from ssmcore.functional import damped_modes, fft_conv
from ssmcore.mixer import Context, Mixer
from ssmcore.mixers.s4d import S4D, S4DConfig
from ssmcore.state import State

from ..config import DiffWaveConfig, SaShiMiConfig
from .backbone import backbone

FREQUENCIES = 64
"""Sines and cosines each that tell the network the step."""


class TwoSidedS4D(S4D):
    """S4D that looks both ways, (b, l, d) to (b, l, d): a second C reads the same system run backwards in time.

    Raises:
        ValueError: As S4D.
    """

    causal = recurrent = takes_rows = takes_dt = False

    def __init__(self, d_model: int, config: S4DConfig | None = None):
        super().__init__(d_model, config)
        self.C_back = nn.Parameter(torch.randn_like(self.C) * 0.5**0.5)

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, None]:
        """Both ways over x, (b, l, d); see Mixer.mix. Raises nothing of its own."""
        with torch.autocast(x.device.type, enabled=False):
            l = x.shape[1]
            # A token meets itself in the kernel ahead only: the kernel back starts one step later.
            back = fft_conv(x.flip(1), F.pad(self._kernel_back(l), (0, 0, 1, 0))[:l]).flip(1)
            y = fft_conv(x, self.kernel(l)) + back
        y = self.out_proj(F.gelu(y))
        return (F.glu(y, dim=-1) if self.config.out == "glu" else y), None

    def _kernel_back(self, length: int) -> Float[Tensor, "l d"]:
        A, B, _, dt = self.continuous()
        _, weight = discretize_diagonal(A, B, dt[:, None], self.config.rule)
        C = torch.view_as_complex(self.C_back.float().contiguous())
        return 2 * damped_modes(C * weight, dt[:, None] * A, length).real


class Told(Mixer):
    """A mixer that is told something: x + proj(shared["told"]) goes in, (b, l, d) to (b, l, d); told is (b, e).

    Raises:
        ValueError: As the mixer.
    """

    needs = frozenset({"told"})

    def __init__(self, inner: Mixer, width: int):
        super().__init__(inner.d_model)
        self.inner, self.proj = inner, nn.Linear(width, inner.d_model)
        self.causal = self.recurrent = self.takes_rows = self.takes_dt = False

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, None]:
        """The mixer on the offset tokens, (b, l, d); see Mixer.mix. Raises as the mixer."""
        assert ctx.shared is not None
        return self.inner.mix(x + self.proj(ctx.shared["told"])[:, None], None, ctx)[0], None


class DiffWave(nn.Module):
    """The network that finds the noise in a waveform, (b, t) to (b, t), and the sampler.

    Raises:
        ValueError: The configuration does not fit itself.
    """

    betas: Tensor
    kept: Tensor

    def __init__(self, config: DiffWaveConfig):
        super().__init__()
        self.config = c = config
        s4d = S4DConfig(d_state=c.d_state, learn_input=True)
        shape = SaShiMiConfig(
            d_model=c.d_model, pool=c.pool, expand=c.expand, layers=c.layers, tiers=("core/mlp",), form="unet",
            mixers={"mlp": {"expand": c.mlp_expand}},
        )  # fmt: skip
        specs = {**shape.mixers, "core": lambda d: Told(TwoSidedS4D(d, s4d), c.d_step)}
        self.in_proj = nn.Linear(1, c.d_model)
        self.step_proj = nn.Sequential(
            nn.Linear(2 * FREQUENCIES, c.d_step), nn.SiLU(), nn.Linear(c.d_step, c.d_step), nn.SiLU()
        )
        self.label_embeddings = nn.ModuleList(nn.Embedding(count, c.d_step) for count in c.labels)
        self.backbone = backbone(shape, specs, causal=False)
        self.norm = LayerNorm(c.d_model)
        self.out_proj = nn.Sequential(nn.Linear(c.d_model, c.d_model), nn.ReLU(), nn.Linear(c.d_model, 1))
        nn.init.zeros_(self.out_proj[2].weight)
        nn.init.zeros_(self.out_proj[2].bias)
        betas = torch.linspace(c.beta_min, c.beta_max, c.steps, dtype=torch.float64)
        self.register_buffer("betas", betas, persistent=False)
        self.register_buffer("kept", (1 - betas).cumprod(0), persistent=False)

    def forward(
        self, wave: Float[Tensor, "b t"], step: Int[Tensor, "b"], label: Int[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "b t"]:
        """The noise in a noisy waveform.

        Args:
            wave: Samples, shape (b, t).
            step: How much noise there is, 0 (little) to steps - 1, int64, shape (b,).
            label: Labels, int64, shape (b, k); -1 or None is unknown.
        Returns:
            The noise, of variance 1, shape (b, t).
        Raises:
            ValueError: A shape or a number does not fit.
        """
        if wave.ndim != 2 or step.shape != wave.shape[:1] or wave.shape[1] == 0:
            raise ValueError(
                f"DiffWave: wave has shape {tuple(wave.shape)}, step {tuple(step.shape)}, expected (b, t) with t >= 1 "
                "and (b,)"
            )
        if len(step) and not 0 <= int(step.min()) <= int(step.max()) < self.config.steps:
            raise ValueError(f"DiffWave: step from {int(step.min())} to {int(step.max())}, expected 0 to "
                             f"{self.config.steps - 1}")  # fmt: skip
        told = self.step_proj(self._angles(step)) + self._told_of(label, len(step))
        t, group = wave.shape[1], math.prod(self.config.pool)
        x = F.relu(self.in_proj(F.pad(wave, (0, -t % group))[..., None]))
        y, _ = self.backbone(x, None, Context(shared={"told": told}), [])
        return self.out_proj(self.norm(y))[:, :t, 0]

    def loss(
        self,
        wave: Float[Tensor, "b t"],
        label: Int[Tensor, "b k"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """Mean squared error of the noise at a random step for each clip.

        Args:
            wave: Clean samples in [-1, 1], shape (b, t).
            label: As `forward`, shape (b, k).
            generator: For steps and noise; None takes torch's own.
        Returns:
            A number, shape ().
        Raises:
            ValueError: As `forward`.
        """
        step = torch.randint(self.config.steps, (len(wave),), generator=generator).to(wave.device)
        noise = torch.randn(wave.shape, generator=generator, dtype=wave.dtype).to(wave.device)
        kept = self.kept[step].to(wave.dtype)[:, None]
        return F.mse_loss(self(kept.sqrt() * wave + (1 - kept).sqrt() * noise, step, label), noise)

    @torch.no_grad()
    def sample(
        self,
        samples: int,
        seeds: Sequence[int],
        *,
        label: Int[Tensor, "b k"] | None = None,
        steps: int | None = None,
        tell: Callable[[int, int], object] | None = None,
    ) -> Float[Tensor, "b t"]:
        """Clips out of noise.

        Args:
            samples: Length, t.
            seeds: One a clip, b: all noise of a clip comes from its own.
            label: As `forward`, shape (b, k).
            steps: Fewer steps than in training, evenly spread: quicker and coarser; None takes all.
            tell: Called after each step with steps done and in all; raise in it to stop.
        Returns:
            Samples, clipped to [-1, 1], float32, shape (b, t).
        Raises:
            ValueError: samples, seeds or steps do not fit.
        """
        total = self.config.steps if steps is None else steps
        if samples < 1 or not seeds or not 1 <= total <= self.config.steps:
            raise ValueError(
                f"DiffWave.sample: samples={samples}, {len(seeds)} seeds, steps={total}, expected at least 1 of each "
                f"and at most {self.config.steps} steps"
            )
        streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        device = self.in_proj.weight.device

        def noise() -> Tensor:
            return torch.stack([torch.randn(samples, generator=g) for g in streams]).to(device)

        x = noise()
        at = torch.linspace(self.config.steps - 1, 0, total).round().long().tolist()
        for i, t in enumerate(at):
            kept = float(self.kept[t])
            before = float(self.kept[at[i + 1]]) if i + 1 < total else 1.0
            beta = 1 - kept / before
            found = self(x, torch.full((len(seeds),), t, device=device), label)
            x = (x - beta / math.sqrt(1 - kept) * found) / math.sqrt(1 - beta)
            if i + 1 < total:
                x = x + math.sqrt(beta * (1 - before) / (1 - kept)) * noise()
            if tell is not None:
                tell(i + 1, total)
        return x.clamp(-1, 1)

    def _angles(self, step: Int[Tensor, "b"]) -> Float[Tensor, "b f"]:
        """Sines and cosines of the step at 64 frequencies from 1 to 10^4, shape (b, 128)."""
        frequency = 10 ** (torch.arange(FREQUENCIES, device=step.device) * 4 / (FREQUENCIES - 1))
        angle = step[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], 1).to(self.in_proj.weight.dtype)

    def _told_of(self, label: Tensor | None, batch: int) -> Tensor:
        """What the labels add, shape (b, e); nothing where they are unknown."""
        told = self.in_proj.weight.new_zeros(batch, self.config.d_step)
        if label is None:
            return told
        if label.shape != (batch, len(self.config.labels)):
            expected = f"(b, {len(self.config.labels)}) with b={batch}"
            raise ValueError(f"DiffWave: label has shape {tuple(label.shape)}, expected {expected}")
        for column, table in zip(label.T, self.label_embeddings, strict=True):
            told = told + torch.where((column >= 0)[:, None], table(column.clamp(min=0)), 0)
        return told
