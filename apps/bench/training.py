"""`python -m apps.bench training`: a training step of Mamba against attention, with memory, from 197 tokens on.

Rows: block is one mixer of 192 channels, forward and backward: `mamba` (inner width 384), `routed_mamba` (both
directions in one scan, Vim's), and `attention` (scaled_dot_product_attention in 3 heads with its projections; flash
attention where the device has it). Model is vision.benchmark's step of Vim-Ti and DeiT-Ti with AdamW. Tokens are those
of a square image in patches of 16 and a class token. Precision is bfloat16 autocast on a GPU, float32 on a CPU.

On a GPU blocks are timed as in `scan --device cuda`; on a CPU the numbers only show that the command works.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SIZES = (224, 512, 768, 1248)
"""Sides of the images: 197, 1,025, 2,305 and 6,085 tokens."""
BLOCKS = ("mamba", "routed_mamba", "attention")
MODELS = ("vim_tiny_patch16_224", "deit_tiny_patch16_224")
WIDTH, HEADS, PATCH = 192, 3, 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `training`."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: cuda if there)")
    parser.add_argument("--img-sizes", nargs="+", type=int, default=list(SIZES), help="sides of images, in pixels")
    parser.add_argument("--batch", type=int, help="images, fewer where they are large (default: 64, on a CPU 1)")
    parser.add_argument("--seconds", type=float, default=2.0, help="measuring time a row (default: 2)")
    parser.add_argument("--blocks-only", action="store_true", help="leave out the whole models")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows as JSON")


def run(args: argparse.Namespace) -> int:
    """Measure, print each row as it comes, write the file; returns the exit status."""
    import torch

    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        print("bench: --device cuda needs a CUDA device, and torch sees none")
        return 2
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}: forward and backward of a block, training step of a model")
    rows = []
    for size in args.img_sizes:
        batch = batch_of(size, args.batch or (64 if device == "cuda" else 1))
        for block in BLOCKS:
            rows.append(tell(measure_block(block, batch, tokens_of(size), device, args.seconds)))
            write(args.json, name, rows)
        if not args.blocks_only:
            for row in measure_models(size, batch, device, args.seconds):
                rows.append(tell(row))
                write(args.json, name, rows)
    return int(any(row["reason"] for row in rows))


def write(path: Path | None, device: str, rows: list[dict[str, Any]]) -> None:
    """The file that was asked for, with the rows so far."""
    import torch

    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        machine = {"device": device, "torch": torch.__version__}
        path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


def tokens_of(size: int) -> int:
    """Tokens of a square image of that many pixels a side, the class token included."""
    return (size // PATCH) ** 2 + 1


def batch_of(size: int, most: int) -> int:
    """Images a step: as many tokens at every size, and one image at least."""
    return max(1, most * tokens_of(SIZES[0]) // tokens_of(size))


def tell(row: dict[str, Any]) -> dict[str, Any]:
    """Print a row; returns it."""
    if row["reason"]:
        print(f"{row['what']:<24} {row['tokens']:>6} tokens x {row['batch']:<4} {row['reason']}", flush=True)
        return row
    rate, memory = row["batch"] / row["seconds"], "" if row["mib"] is None else f"{row['mib']:9.0f} MiB"
    text = f"{row['what']:<24} {row['tokens']:>6} tokens x {row['batch']:<4} {1e3 * row['seconds']:10.3f} ms"
    print(f"{text} {rate:10.1f} images/s {memory}", flush=True)
    return row


def measure_block(which: str, batch: int, tokens: int, device: str, seconds: float) -> dict[str, Any]:
    """Median seconds of forward and backward, and on a GPU the peak memory above weights and input."""
    import torch

    row: dict[str, Any] = dict(what=f"block {which}", batch=batch, tokens=tokens, seconds=None, mib=None, reason="")
    torch.manual_seed(0)
    block = make_block(which).to(device)
    x = torch.randn(batch, tokens, WIDTH, device=device)
    narrow = torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda")

    def step() -> None:
        with narrow:
            y = block(x)
        y.float().square().mean().backward()

    try:
        if device == "cuda":
            from .gpu import stream, timed

            torch.cuda.synchronize()
            with torch.cuda.stream(stream()):
                step()
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_allocated()
                step()
                row["mib"] = (torch.cuda.max_memory_allocated() - held) / 2**20
                row["seconds"], row["runs"], row["captured"] = timed(step, seconds)
        else:
            row["seconds"], row["runs"] = timed_on_cpu(step, seconds)
    except RuntimeError as error:  # out of memory among them
        row["reason"] = str(error).splitlines()[0]
    return row


def make_block(which: str) -> Callable[[Any], Any]:
    """One mixer of WIDTH channels as a module from (b, l, WIDTH) to (b, l, WIDTH)."""
    import torch
    from torch import nn

    from ssmcore import create_mixer

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixer = create_mixer(which, WIDTH)

        def forward(self, x):
            return self.mixer(x)[0]

    with torch.random.fork_rng(devices=[]):
        return Attention() if which == "attention" else Mixed()


def timed_on_cpu(step: Callable[[], None], seconds: float) -> tuple[float, int]:
    """Median seconds of a call, and how many were timed, after one to warm up."""
    step()
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < seconds:
        begun = time.perf_counter()
        step()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken), len(taken)


def measure_models(size: int, batch: int, device: str, seconds: float) -> Iterator[dict[str, Any]]:
    """A training step of each model, in a process of its own."""
    from vision.benchmark import Case, in_own_process
    from vision.config import BenchmarkConfig

    config = BenchmarkConfig(seconds=seconds)
    for model in MODELS:
        precision = "bf16" if device == "cuda" else "fp32"
        case = Case(model=model, img_size=size, batch_size=batch, precision=precision, which_pass="train")
        found = in_own_process(case, config, device)
        row = dict(what=model.removesuffix("_patch16_224"), batch=batch, tokens=tokens_of(size), reason=found.reason)
        taken = None if found.milliseconds is None else found.milliseconds / 1e3
        yield {**row, "seconds": taken, "mib": found.memory_mib}
