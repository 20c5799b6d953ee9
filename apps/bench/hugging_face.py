"""`python -m apps.bench transformers`: Hugging Face transformers' Mamba models with and without ssmcore.compat.

The same random model runs in two processes, one that called ssmcore.compat.install() first and one that did not; they
take turns. Rows: prefill (a prompt, no gradients), training (forward and backward), decode (a further token).
The outputs' difference is printed too: it is the same model.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

SIDES = ("transformers", "ssmcore")
PASSES = ("prefill", "training", "decode")
MODELS = ("mamba", "mamba2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `transformers`."""
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS), help="models (default: both)")
    parser.add_argument("--batch", type=int, default=2, help="sequences (default: 2)")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence (default: 256)")
    parser.add_argument("--d-model", type=int, default=256, help="channels of the model (default: 256)")
    parser.add_argument("--layers", type=int, default=2, help="blocks (default: 2)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process (default: 1)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each row (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows as JSON")


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, write the file."""
    rows = []
    for model in args.model:
        rows += measure(model, args)
    for row in rows:
        print(as_text(row))
    if args.json:
        from .scan import describe_machine

        sizes = {k: getattr(args, k) for k in ("batch", "length", "d_model", "layers", "threads", "rounds")}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"machine": describe_machine(), "sizes": sizes, "rows": rows}, indent=1) + "\n")
    return 0


def as_text(row: dict) -> str:
    """A line of the table."""
    times = "  ".join(f"{side} {1e3 * row[side]:9.1f} ms" for side in SIDES)
    name = f"{row['model']} {row['pass']}"
    return f"{name:<18} {times}  {row['times_faster']:6.1f}x  (CPU time; outputs differ by {row['difference']:.0e})"


def measure(model: str, args: argparse.Namespace) -> list[dict]:
    """The rows of one model: median CPU seconds of each side, and the largest relative difference of the outputs."""
    workers = {side: _Worker(side, model, args) for side in SIDES}
    rows = []
    try:
        for which in PASSES:
            first = {side: worker.ask(which) for side, worker in workers.items()}  # warm-up: builds native code
            turns: dict[str, list[float]] = {side: [] for side in SIDES}
            for _ in range(args.rounds):
                for side, worker in workers.items():
                    turns[side].append(worker.ask(which)["cpu"])
            seconds = {side: statistics.median(times) for side, times in turns.items()}
            a, b = (first[side]["output"] for side in SIDES)
            difference = max(abs(x - y) for x, y in zip(a, b, strict=True)) / max(map(abs, a))
            ratio = seconds["transformers"] / seconds["ssmcore"]
            rows.append({"model": model, "pass": which, **seconds, "times_faster": ratio, "difference": difference})
    finally:
        for worker in workers.values():
            worker.stop()
    return rows


class _Worker:
    """A process with one model in it, that runs a pass when asked."""

    def __init__(self, side: str, model: str, args: argparse.Namespace):
        root = Path(__file__).parents[2]
        paths = [str(root), str(root / "kernels"), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(args.threads)}
        words = [side, model, args.batch, args.length, args.d_model, args.layers, args.threads]
        command = [sys.executable, "-m", __name__, *map(str, words)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, text=True, env=environment, **pipes)

    def ask(self, which: str) -> dict:
        """Run a pass: its CPU seconds and some of its outputs."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(which + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"bench transformers: a process ended with status {self.process.wait()}")
        return json.loads(line)

    def stop(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


# ---- in the worker ----


def serve(side: str, model: str, batch: int, length: int, d_model: int, layers: int, threads: int) -> None:
    """Answer passes from standard input until it ends."""
    import torch

    torch.set_num_threads(threads)
    if side == "ssmcore":
        import ssmcore.compat

        ssmcore.compat.install()
    net, tokens = _model(model, batch, length, d_model, layers)

    def prefill():
        with torch.no_grad():
            return net.eval()(tokens, use_cache=False).logits

    def training():
        net.train().zero_grad()
        out = net(tokens, labels=tokens, use_cache=False)
        out.loss.backward()
        return net.get_input_embeddings().weight.grad

    with torch.no_grad():
        cache = net.eval()(tokens[:, :16], use_cache=True).cache_params

    def decode():
        with torch.no_grad():
            return net.eval()(tokens[:, 16:17], cache_params=cache, use_cache=True).logits

    passes = {"prefill": prefill, "training": training, "decode": decode}
    for line in sys.stdin:
        before = time.process_time()
        output = passes[line.strip()]()
        spent = time.process_time() - before
        print(
            json.dumps({"cpu": spent, "output": output.flatten()[:: max(1, output.numel() // 500)].tolist()}),
            flush=True,
        )


def _model(name: str, batch: int, length: int, d_model: int, layers: int):
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 1024, "hidden_size": d_model, "num_hidden_layers": layers}
    if name == "mamba":
        net = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes))
    else:
        heads = {"head_dim": 32, "num_heads": 2 * d_model // 32, "n_groups": 1}
        net = transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**sizes, **heads))
    return net, torch.randint(1024, (batch, length))


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
