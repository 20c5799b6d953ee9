"""`python -m apps.lab spring`: a spring-mass-damper is simulated, judged, controlled and identified."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from ssmcore import control, lti
from ssmcore.control import Spring

from .config import SpringConfig


@dataclass(frozen=True, kw_only=True)
class Study:
    """What was found, and the curves that show it, each (l,)."""

    facts: list[tuple[str, str]]
    """What -> how much."""
    time: Tensor
    """In s."""
    curves: dict[str, dict[str, Tensor]]
    """Panel -> name -> position, in m."""


def run(config: SpringConfig) -> Study:
    """Study a spring, and draw output/spring.png.

    Args:
        config: What to do.
    Raises:
        ValueError: A number is not what it should be. No shapes.
    """
    spring = Spring(config.m, config.c, config.k)
    system = lti.spring_mass_damper(*spring)
    if config.dt <= 0 or config.seconds < 2 * config.dt:
        raise ValueError(f"spring: dt={config.dt}, seconds={config.seconds}, expected dt > 0 and two steps or more")
    time = torch.arange(1, round(config.seconds / config.dt) + 1, dtype=torch.float64) * config.dt
    facts, curves = _motion(spring, system, config.dt, time)
    more, controlled = _controlled(config, system, time)
    found, identified = _identified(config, spring, system, time)
    study = Study(facts=facts + more + found, time=time, curves={**curves, **controlled, **identified})
    _draw(study, Path(config.output) / "spring.png")
    return study


def _motion(spring: Spring, system: lti.StateSpace, dt: float, time: Tensor) -> tuple[list, dict]:
    """Poles, stability, and the motions that have a closed form."""
    discrete = lti.sample(system, dt)
    poles = torch.linalg.eigvals(system.A).tolist()
    start = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    free, _ = lti.simulate(discrete, torch.zeros(1, len(time), 1, dtype=torch.float64), start)
    step = lti.step_response(discrete, len(time))[:, 0, 0]
    exact = lti.spring_free_response(*spring, time)
    exact_step = lti.spring_step_response(*spring, time)
    error = max((free[0, :, 0] - exact).abs().max().item(), (step - exact_step).abs().max().item())
    certificate = lti.lyapunov_certificate(system.A, "continuous")
    facts = [
        ("poles", ", ".join(f"{p:.4g}" for p in poles)),
        ("undamped frequency, rad/s", f"{(spring.k / spring.m) ** 0.5:.4g}"),
        ("damping ratio", f"{spring.c / (2 * (spring.k * spring.m) ** 0.5):.4g}"),
        ("stable, by poles / sampled poles", f"{lti.is_stable(system.A, 'continuous')} / {_stable(discrete)}"),
        ("Lyapunov function", "none" if certificate is None else f"x' {_rounded(certificate)} x"),
        ("controllable, observable states", f"{_rank(system, True)}, {_rank(system, False)} of 2"),
        ("largest error against the closed forms, m", f"{error:.1e}"),
    ]
    return facts, {"let go at 1 m": {"simulated": free[0, :, 0], "closed form": exact}}


def _controlled(config: SpringConfig, system: lti.StateSpace, time: Tensor) -> tuple[list, dict]:
    """The optimal regulator and one with chosen poles, both from 1 m to rest."""
    eye = torch.eye(2, dtype=torch.float64)
    K, P = control.lqr(system.A, system.B, eye, config.effort * eye[:1, :1], "continuous")
    speed = config.pole_speed
    placed = control.place_poles(system.A, system.B, (-speed, -1.5 * speed))
    gain = control.observer(system.A, system.C, (-4 * speed, -5 * speed))
    start = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    still = torch.zeros(1, len(time), 1, dtype=torch.float64)
    curves = {}
    for name, k in (("LQR", K), ("placed poles", placed)):
        closed = lti.sample(system._replace(A=system.A - system.B @ k), config.dt)
        curves[name] = lti.simulate(closed, still, start)[0][0, :, 0]
    facts = [
        ("LQR gain, poles", f"{_rounded(K)}, {_poles(system.A - system.B @ K)}"),
        ("LQR cost from 1 m", f"{P[0, 0].item():.4g}"),
        ("gain for chosen poles", f"{_rounded(placed)}, {_poles(system.A - system.B @ placed)}"),
        ("observer's gain, poles", f"{_rounded(gain.T)}, {_poles(system.A - gain @ system.C)}"),
    ]
    return facts, {"brought to rest": curves}


def _identified(config: SpringConfig, spring: Spring, system: lti.StateSpace, time: Tensor) -> tuple[list, dict]:
    """m, c and k from a noisy record of a random force."""
    generator = torch.Generator().manual_seed(config.seed)
    force = torch.randn(len(time), dtype=torch.float64, generator=generator)
    moved = lti.simulate(lti.sample(system, config.dt), force[None, :, None])[0][0, :, 0]
    noise = config.noise * moved.std() * torch.randn(len(time), dtype=torch.float64, generator=generator)
    found = control.identify_spring(force, moved + noise, config.dt)
    again = lti.simulate(lti.sample(lti.spring_mass_damper(*found), config.dt), force[None, :, None])[0][0, :, 0]
    facts = [
        ("identified m, c, k", ", ".join(f"{value:.4g}" for value in found)),
        ("true m, c, k", ", ".join(f"{value:.4g}" for value in spring)),
    ]
    curves = {"measured": moved + noise, "simulated as identified": again}
    return facts, {f"identified, noise {config.noise:g}": curves}


def _draw(study: Study, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(1, len(study.curves), figsize=(4 * len(study.curves), 3))
    for axis, (title, curves) in zip(axes, study.curves.items(), strict=True):
        for style, (name, values) in zip(("-", "--"), curves.items(), strict=True):
            axis.plot(study.time, values, style, label=name, linewidth=1)
        axis.set(title=title, xlabel="s")
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("position, m")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _stable(discrete: lti.StateSpace) -> bool:
    return lti.is_stable(discrete.A, "discrete")


def _rank(system: lti.StateSpace, inputs: bool) -> int:
    if inputs:
        return lti.controllability_rank(system.A, system.B)
    return lti.observability_rank(system.A, system.C)


def _poles(A: Tensor) -> str:
    return ", ".join(f"{p:.4g}" for p in torch.linalg.eigvals(A).tolist())


def _rounded(matrix: Tensor) -> Any:
    return [[round(value, 4) for value in row] for row in matrix.tolist()]
