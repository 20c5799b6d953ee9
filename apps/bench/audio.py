"""`python -m apps.bench audio`: raw audio sample by sample, natively and in PyTorch, on one core.

Rows: eager is the PyTorch model's step; float32, bfloat16 and int8 are the native step loop by the format of its
weights, drawing included; "8 streams" makes so many clips at once, the samples of all of them counted; each floor
reads the same weights as one stream in the same order and does nothing else. Weights are random: the speed does not
depend on them. Times are of the process's CPU on one thread, so that a busy machine disturbs them less; the rows are
measured in turns, and the median is given.
"""

import argparse
import ctypes
import functools
import json
import math
import os
import statistics
import sys
from pathlib import Path

from .timing import Neighbours, Protocol, interleave

CASES = {
    "full": ("sashimi_s4d", {}, "SaShiMi, 8 layers, D=64, S4D"),
    "half": ("sashimi_s4d", {"layers": 4}, "SaShiMi, 4 layers, D=64, S4D"),
    "s4": ("sashimi", {}, "SaShiMi, 8 layers, D=64, S4"),
    "unet": ("sashimi_s4d_unet", {}, "SaShiMi U-Net, 8 layers, D=64, S4D"),
    "mamba": ("mamba_sc09", {}, "Mamba U-Net, 8 blocks, D=64"),
}
FORMATS = ("float32", "bfloat16", "int8")
RATE = 16_000
TOKENS, EAGER_TOKENS = 1600, 32
TOGETHER = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `audio`."""
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=["full", "half"], help="models to measure")
    parser.add_argument("--seconds", type=float, default=3.0, help="measuring time a row (default: 3)")
    parser.add_argument("--checkpoint", metavar="RUN_DIR", help="also: what each format costs this model, in bits")
    parser.add_argument("--sound", nargs="+", default=[], metavar="FILE", help="recordings for --checkpoint")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="JSON to a file, or in place of the table")


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, write the file."""
    from ssm_kernels import native_build

    from audio.errors import AudioError

    if (reason := native_build.why_unavailable()) is not None:
        print(f"python -m apps.bench audio: nothing to compare, {reason}", file=sys.stderr)
        return 2
    result = {"machine": machine(), "rows": []}
    for name in args.case:
        result["rows"] += measure(name, Protocol(budget=args.seconds))
    result["machine"]["load_after"] = os.getloadavg()[0]
    if args.checkpoint:
        try:
            result["bits_per_sample"] = losses(args.checkpoint, args.sound)
        except AudioError as error:
            print(f"python -m apps.bench audio: {error}", file=sys.stderr)
            return 2
    if args.json == "-":
        print(json.dumps(result, indent=1))
        return 0
    print(as_text(result))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
    return 0


def machine() -> dict:
    """What ran this."""
    from .scan import describe_machine

    return {**describe_machine(), "threads": 1, "load_before": os.getloadavg()[0]}


def measure(name: str, protocol: Protocol) -> list[dict]:
    """The rows of a model, interleaved.

    Args:
        name: A key of CASES.
        protocol: How long.
    Returns:
        model, row, seconds a sample (median), samples per second, times real time at 16 kHz, ratio to eager, bytes of
        weights a sample, and what the floor allows.
    """
    import torch
    from ssm_kernels.step_network.reference import Draw
    from tqdm import tqdm

    from audio import SaShiMi, preset
    from audio.models.packed import Packed

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        model = SaShiMi(preset(CASES[name][0], **CASES[name][1])).eval()
        packed = {weights: Packed(model, weights) for weights in FORMATS}
        jobs = {"eager": _eager(model, torch)}
        for weights, p in packed.items():
            for row, clips in ((weights, 1), (f"{weights}, {TOGETHER} streams", TOGETHER)):
                streams = p.streams(model.init_state(clips), torch.full((clips,), model.config.levels // 2))
                options = {"count": TOKENS // clips, "seeds": range(clips), "draw": Draw()}
                jobs[row] = functools.partial(p.network.run, streams, **options)
            jobs[f"floor {weights}"] = _replay(p.network)
        busy = Neighbours()
        with tqdm(total=len(jobs), desc=name, disable=None, bar_format="{desc} {percentage:3.0f}%|{bar}|") as bar:
            samples = interleave(jobs, protocol, lambda _, share: bar.update(share))
    finally:
        torch.set_num_threads(before)
    seconds = {
        row: statistics.median(s.cpu) / (EAGER_TOKENS if row == "eager" else TOKENS) for row, s in samples.items()
    }
    return [
        {
            "model": name, "row": row, "seconds_per_sample": seconds[row], "samples_per_second": 1 / seconds[row],
            "times_real_time_16k": 1 / seconds[row] / RATE, "times_eager": seconds["eager"] / seconds[row],
            "bytes_per_sample": packed[row.split()[-1]].network.traffic() if row.split()[-1] in packed else None,
            "times_floor": seconds[row] / seconds[f"floor {row}"] if row in packed else None,
            "runs": len(samples[row].cpu), "cores_used_by_others": busy.cores(),
        }
        for row in samples
    ]  # fmt: skip


def losses(checkpoint: str, sounds: list[str]) -> dict[str, float]:
    """Bits a sample of recordings by the format of the weights, peak-normalised, labels unknown.

    Args:
        checkpoint: A run folder of audio.train, or its weights.
        sounds: Files.
    Raises:
        AudioError: A file cannot be used.
    """
    from audio.checkpoint import Checkpoint
    from audio.files import read_audio, to_mono
    from audio.generation import Generator

    loaded, nats, samples = Checkpoint.load(checkpoint), dict.fromkeys(("eager", *FORMATS), 0.0), 0
    for sound in sounds:
        wave = to_mono(*read_audio(sound), loaded.sample_rate)
        levels = loaded.quantizer.encode(wave / wave.abs().max().clamp(min=1e-6))[None]
        samples += levels.shape[1]
        for row in nats:
            how = {"backend": "torch"} if row == "eager" else {"weights": row}
            made = Generator.of(loaded, **how).start([0]).score(levels)
            nats[row] -= float(made.log_likelihood.double().sum())
    return {row: value / max(samples, 1) / math.log(2) for row, value in nats.items()}


def _eager(model, torch):
    state, token = model.init_state(1), torch.tensor([model.config.levels // 2])

    @torch.inference_mode()
    def steps():
        left = state
        for _ in range(EAGER_TOKENS):
            _, left = model.step(token, left)

    return steps


def _replay(network):
    """Read what TOKENS steps read."""
    from ssm_kernels import native_build

    lib = native_build.load(Path(__file__).with_name("cache.c"), (f"-I{native_build.COMMON.parent}",))
    lib.cache_replay.restype = ctypes.c_double
    lib.cache_replay.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    numbers = [n for region in network.regions() for n in region]
    table = (ctypes.c_int64 * len(numbers))(*numbers)
    return lambda: lib.cache_replay(network.weights.data_ptr(), table, len(numbers) // 3, TOKENS)


def as_text(result: dict) -> str:
    """The tables for a terminal."""
    m, head = result["machine"], ("", "us a sample", "samples/s", "x 16 kHz", "x eager", "MB a sample", "x floor")
    out = [f"{m['cpu']}, 1 of {m['cores']} cores, torch {m['versions']['torch']}, load {m['load_before']:.1f} before"]
    for model in dict.fromkeys(row["model"] for row in result["rows"]):
        out += ["", CASES[model][2], "  " + f"{head[0]:<20}" + "".join(f"{cell:>13}" for cell in head[1:])]
        for row in (r for r in result["rows"] if r["model"] == model):
            cells = (
                f"{row['seconds_per_sample'] * 1e6:.1f}", f"{row['samples_per_second']:,.0f}",
                f"{row['times_real_time_16k']:.2f}", f"{row['times_eager']:.0f}",
                "" if row["bytes_per_sample"] is None else f"{row['bytes_per_sample'] / 1e6:.2f}",
                "" if row["times_floor"] is None else f"{row['times_floor']:.1f}",
            )  # fmt: skip
            out.append(f"  {row['row']:<20}" + "".join(f"{cell:>13}" for cell in cells))
    if "bits_per_sample" in result:
        out += ["", "bits a sample: " + ", ".join(f"{k} {v:.5f}" for k, v in result["bits_per_sample"].items())]
    return "\n".join(out)
