"""python -m apps.lab TASK --mixer NAME; also table, lra, draw, bytes, generate, glue, scaling, spring, kalman.

Heavy imports stand inside the functions, so that --help and a refused option answer at once.
"""

import codecs
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .bytes.config import BytesConfig, GenerateConfig, GlueConfig, ScalingConfig
from .config import DrawConfig, KalmanConfig, LabConfig, SpringConfig, TableConfig
from .lra.config import LraConfig

PROG = "python -m apps.lab"


@dataclass(frozen=True, kw_only=True)
class Command:
    """A word after the program's name."""

    config: type
    """What it can be told."""
    job: Callable[[Any], None]
    """What it does."""
    usage: str = "[options]"
    """Its arguments."""
    positional: str | None = None
    """Field of the config that takes words without a flag."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program name; None takes sys.argv.
    Returns:
        Exit status: 0, 1 after NaN in training, 2 for input that cannot be used, 128 + signal after an interruption.
    """
    from ssmcore.engine import cli, guarded

    words = sys.argv[1:] if argv is None else list(argv)
    name = words[0] if words and words[0] in COMMANDS else ""
    command = COMMANDS[name]
    prog = f"{PROG} {name}".strip()
    usage = command.usage
    if not name:
        usage = "\n       ".join([usage, *(f"{PROG} {n} {c.usage}" for n, c in COMMANDS.items() if n)])
    config = cli.parse(
        command.config, words[1:] if name else words, prog=prog, usage=usage, positional=command.positional
    )
    go_on = "--resume RUN_DIR goes on (table, scaling: the same command)"
    return guarded(lambda: command.job(config), prog=PROG, refused=ValueError, go_on=go_on)


def _one(config: LabConfig) -> None:
    from .experiment import run

    if len(config.task) != 1:
        raise ValueError(f"expected one task, got {' '.join(config.task)}")
    result = run(config)
    print(f"{result.task}, {result.mixer}, {result.parameters} parameters: {result.steps} batches of length")
    print(f"{result.length} in {result.cpu_seconds} s of processor time; score on fresh sequences by length:")
    for multiple, score in result.scores.items():
        print(f"{result.length * int(multiple):8} {score:.3f}")


def _table(config: TableConfig) -> None:
    from .table import markdown, run

    print(markdown(run(config)))
    print(f"{config.output}: table.md, table.csv, table.png")


def _lra(config: LraConfig) -> None:
    from .lra.run import run

    result = run(config)
    print(f"{result.task}, {result.mixer}, {result.parameters} parameters, {result.epochs} epochs:")
    print(f"validation {result.val_accuracy:.4f}   test {result.test_accuracy:.4f}")


def _draw(config: DrawConfig) -> None:
    from pathlib import Path

    from .lra.data import draw_listops, draw_pathfinder

    if config.task == ("listops",):
        draw_listops(Path(config.output), config.drawn, config.seed)
    elif config.task == ("pathfinder",):
        draw_pathfinder(Path(config.output), config.count, config.size, config.seed)
    else:
        raise ValueError(f"draw: expected listops or pathfinder, got {' '.join(config.task) or 'nothing'}")
    print(f"{config.output}: {config.task[0]}")


def _bytes(config: BytesConfig) -> None:
    from .bytes.run import run

    result = run(config)
    print(f"{result.mixer}, {result.parameters} parameters, {result.steps} batches, {result.train_bytes} bytes,")
    print(f"{result.cpu_seconds} s of processor time:")
    print(f"{result.test_bits:.3f} bits per byte of the test part, {result.val_bits:.3f} of the validation part")


def _generate(config: GenerateConfig) -> None:
    from itertools import islice
    from pathlib import Path

    import torch

    from .bytes.model import continued
    from .bytes.run import trained

    if len(config.run) != 1:
        raise ValueError(f"generate: expected one run folder, got {' '.join(config.run) or 'none'}")
    model = trained(Path(config.run[0]))
    generator = torch.Generator().manual_seed(config.seed)
    written = continued(model, config.prompt.encode(), config.temperature, config.top_p, generator)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    print(config.prompt, end="")
    for byte in islice(written, config.count):
        print(decoder.decode(bytes([byte])), end="", flush=True)
    print()


def _glue(config: GlueConfig) -> None:
    from .bytes.finetune import run

    result = run(config)
    print(f"{result.task}: {result.score} {result.dev:.4f} on the dev part, {result.val:.4f} on what was held out")


def _scaling(config: ScalingConfig) -> None:
    from .bytes.scaling import run

    points, law = run(config)
    print(f"{'layers':>6} {'width':>6} {'parameters':>10} {'bytes':>12} {'operations':>11} {'bits':>7} {'law':>7}")
    for p in points:
        shape = f"{p['layers']:6} {p['width']:6} {p['parameters']:10} {p['train_bytes']:12}"
        print(f"{shape} {p['compute']:11.2e} {p['test_bits']:7.3f} {law.at(p['compute']):7.3f}")
    print(f"bits = (C / {law.compute:.2e})^-{law.alpha:.4f}, error of its logarithm {law.residual:.4f}")
    print(f"{config.output}: scaling.json, scaling.png")


def _spring(config: SpringConfig) -> None:
    from .spring import run

    for what, value in run(config).facts:
        print(f"{what:44} {value}")
    print(f"{config.output}: spring.png")


def _kalman(config: KalmanConfig) -> None:
    from .tracking import run

    found = run(config)
    for name, error in found.errors.items():
        print(f"root mean square error, {name:20} {error:8.3f} m")
    print(f"inside the smoother's 95 % interval          {100 * found.covered:6.1f} %")
    print(f"largest difference, sequential and parallel  {found.difference:8.1e}")
    print(f"log-likelihood, filter and dense Gaussian    {found.log_likelihood:.6f}  {found.dense:.6f}")
    print(f"{config.output}: kalman.png")


COMMANDS = {
    "": Command(config=LabConfig, job=_one, usage="TASK [--mixer NAME] [options]", positional="task"),
    "table": Command(config=TableConfig, job=_table),
    "lra": Command(config=LraConfig, job=_lra, usage="TASK [--data-dir FOLDER] [options]", positional="task"),
    "draw": Command(config=DrawConfig, job=_draw, usage="listops|pathfinder [options]", positional="task"),
    "bytes": Command(config=BytesConfig, job=_bytes, usage="FILE_OR_FOLDER ... [options]", positional="data"),
    "generate": Command(config=GenerateConfig, job=_generate, usage="RUN_DIR [options]", positional="run"),
    "glue": Command(config=GlueConfig, job=_glue, usage="TASK --data-dir FOLDER [options]", positional="task"),
    "scaling": Command(config=ScalingConfig, job=_scaling, usage="FILE_OR_FOLDER ... [options]", positional="data"),
    "spring": Command(config=SpringConfig, job=_spring),
    "kalman": Command(config=KalmanConfig, job=_kalman),
}
"""By the first word; without one of them it is a task."""


if __name__ == "__main__":
    sys.exit(main())
