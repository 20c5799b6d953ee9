"""python -m vision.benchmark --models vim_tiny_patch16_224,deit_tiny_patch16_224 --img-sizes 224,1248: images a second.

Every case runs in a process of its own: its memory is its own, and one that does not fit costs only its row. The clock
is read after the device has finished. "train" is forward, cross entropy, backward and an AdamW step. timm's ViT and
DeiT call scaled_dot_product_attention, which is flash attention where the device has it.
"""

import csv
import gc
import multiprocessing
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from .config import BenchmarkConfig
from .errors import DataError

PROG = "python -m vision.benchmark"
LISTS = ("--models", "--img-sizes", "--batch-sizes", "--precisions", "--passes")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row to measure."""

    model: str
    img_size: int
    batch_size: int
    precision: str
    which_pass: str


@dataclass(frozen=True, kw_only=True)
class Row(Case):
    """A measured case."""

    images_per_second: float | None
    """Batch size over the median time of a call; None where it could not run."""
    milliseconds: float | None
    """Median time of a call."""
    memory_mib: float | None
    """Peak above what imports hold: of the device's allocator, or of the process on a CPU."""
    reason: str = ""
    """Why it could not run."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program name; None takes sys.argv.
    Returns:
        Exit status: 0, 1 if a case could not run, 2 for input that cannot be used, 130 after an interruption.
    """
    from ssmcore.engine import cli, guarded

    words = [_listed(word, before) for word, before in _pairs(sys.argv[1:] if argv is None else list(argv))]
    config = cli.parse(BenchmarkConfig, words, prog=PROG, usage="[--models A,B] [--img-sizes 224,1248] [options]")
    return guarded(lambda: int(any(row.reason for row in benchmark(config))), prog=PROG, refused=DataError)


def benchmark(config: BenchmarkConfig) -> list[Row]:
    """Measure all combinations, printing each row as it comes.

    Args:
        config: What to do.
    Returns:
        The rows.
    Raises:
        DataError: There is no such device or model.
    """
    import torch

    from .classifier import create

    for name in config.models:
        with torch.device("meta"), suppress(NotImplementedError, RuntimeError):
            create(name)
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise DataError("--device cuda: there is no CUDA device")
    label = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {config.threads or torch.get_num_threads()} "
    print(f"{label}{'' if device == 'cuda' else 'threads'}, torch {torch.__version__}; median of synchronised calls")
    print(f"{'model':30}{'size':>6}{'batch':>6}  {'precision':10}{'pass':6}{'images/s':>10}{'ms':>10}{'MiB':>9}")
    cases = product(config.models, config.img_sizes, config.batch_sizes, config.precisions, config.passes)
    rows = []
    for model, size, batch, precision, which in cases:
        if precision == "tf32" and device == "cpu":
            continue
        case = Case(model=model, img_size=size, batch_size=batch, precision=precision, which_pass=which)
        rows.append(in_own_process(case, config, device))
        print(_line(rows[-1]), flush=True)
    if config.output and rows:
        with Path(config.output).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(asdict(rows[0])))
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
    return rows


def in_own_process(case: Case, config: BenchmarkConfig, device: str) -> Row:
    """Measure a case in a fresh process; what goes wrong there is the row's reason.

    Args:
        case: What to measure.
        config: How.
        device: cpu or cuda.
    """
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            found = pool.submit(measure, case, config, device).result()
    except BrokenProcessPool:
        found = {"reason": "its process was killed: out of memory?"}
    except Exception as error:  # a case that cannot run must not take the others with it
        found = {"reason": " ".join(str(error).split())[:80] or type(error).__name__}
    empty = {"images_per_second": None, "milliseconds": None, "memory_mib": None}
    return Row(**asdict(case), **{**empty, **found})


def measure(case: Case, config: BenchmarkConfig, device: str) -> dict[str, Any]:
    """Time a case in this process.

    Args:
        case: What to measure.
        config: How long, channels_last, torchcompile, threads.
        device: cpu or cuda.
    Returns:
        Fields of Row.
    Raises:
        RuntimeError: It does not fit the device, or the model cannot take the size.
    """
    import torch

    from .classifier import create

    torch.set_num_threads(config.threads or torch.get_num_threads())
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = case.precision == "tf32"
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    torch.manual_seed(0)
    create(case.model)  # imports and caches, which are not the case's own
    gc.collect()
    baseline = _memory("VmRSS") if device == "cpu" else 0.0
    model = create(case.model, img_size=case.img_size).to(device, memory_format=layout)
    images = torch.randn(case.batch_size, 3, case.img_size, case.img_size).to(device, memory_format=layout)
    run = _stepper(model, images, case, config)
    finish = torch.cuda.synchronize if device == "cuda" else _nothing
    run()  # compiles, allocates, builds kernels
    gc.collect()
    _restart_peak(device)
    times: list[float] = []
    run(), finish()
    peak = _peak(device)
    until = time.perf_counter() + config.seconds
    while len(times) < 3 or time.perf_counter() < until:
        begun = time.perf_counter()
        run(), finish()
        times.append(time.perf_counter() - begun)
    middle = statistics.median(times)
    return {
        "images_per_second": case.batch_size / middle,
        "milliseconds": 1e3 * middle,
        "memory_mib": peak if peak is None else peak - baseline,
    }


def _stepper(model: Any, images: Any, case: Case, config: BenchmarkConfig) -> Any:
    """One call: forward, or a whole training step."""
    import torch
    import torch.nn.functional as F

    if config.torchcompile:
        model.compile()
    narrow = torch.autocast(images.device.type, torch.bfloat16, enabled=case.precision == "bf16")
    if case.which_pass == "infer":
        model.eval()

        def infer() -> None:
            with torch.inference_mode(), narrow:
                model(images)

        return infer
    labels = torch.arange(len(images), device=images.device) % model.num_classes
    optimizer = torch.optim.AdamW(model.parameters())

    def train() -> None:
        with narrow:
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    model.train()
    return train


def _restart_peak(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):  # Linux alone; elsewhere there is no number
            Path("/proc/self/clear_refs").write_text("5")


def _peak(device: str) -> float | None:
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    return _memory("VmHWM")


def _memory(key: str) -> float | None:
    """MiB of this process, as Linux counts them: VmRSS now, VmHWM at most."""
    with suppress(OSError):
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status[key].split()[0]) / 1024
    return None


def _nothing() -> None:
    """A CPU has finished when the call returns."""


def _line(row: Row) -> str:
    start = f"{row.model:30}{row.img_size:6}{row.batch_size:6}  {row.precision:10}{row.which_pass:6}"
    if row.reason:
        return f"{start}  {row.reason}"
    memory = "" if row.memory_mib is None else f"{row.memory_mib:.0f}"
    return f"{start}{row.images_per_second:10.1f}{row.milliseconds:10.1f}{memory:>9}"


def _pairs(words: list[str]) -> list[tuple[str, str]]:
    return list(zip(words, ["", *words], strict=False))


def _listed(word: str, before: str) -> str:
    """A,B after one of the list options is [A,B]."""
    flag, eq, value = word.partition("=")
    if eq and _takes_list(flag) and not value.startswith("["):
        return f"{flag}=[{value}]"
    return f"[{word}]" if _takes_list(before) and not word.startswith(("[", "--")) else word


def _takes_list(flag: str) -> bool:
    """Also for a beginning of a list option, as the parser understands it: --batch-size."""
    return len(flag) > 2 and any(name.startswith(flag.replace("_", "-")) for name in LISTS)


if __name__ == "__main__":
    sys.exit(main())
