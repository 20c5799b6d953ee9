"""`python -m ssm_kernels.offline`: compile the Triton kernels for a GPU that is not there, and read what came of it.

The launchers run on tensors without memory ("meta"); every launch is caught, and its kernel compiled for the target
with the very specialisations that the launch would have had. The machine code then tells registers, spills, exchanges
between lanes and how exponentials are computed. It tells no time.
"""

import argparse
import contextlib
import functools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64",
         torch.int32: "i32", torch.int64: "i64", torch.bool: "i1"}  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """What the machine code of one kernel says."""

    case: str
    kernel: str
    warps: int
    registers: int
    shared_bytes: int
    instructions: int
    """Of the whole kernel."""
    loop: int
    """Of its longest loop, the loops within included."""
    spills: int
    """Loads and stores of registers that did not fit."""
    shuffles: int
    """Exchanges between lanes."""
    exp2: int
    """Exponentials by the hardware's flush-to-zero instruction ..."""
    exp2_slow: int
    """... and by the form that costs three more operations for denormals."""


def selective_scan_cases() -> dict[str, Callable[[], Any]]:
    """Launches of the selective scan by name: forward and backward as the shapes of the benchmark have them."""
    from .selective_scan import triton, triton_long

    def tensors(b: int, l: int, d: int, n: int, dtype: torch.dtype, gate: bool = True) -> tuple[Any, ...]:
        steps = [torch.empty(b, l, d, dtype=dtype, device="meta") for _ in range(3)]
        A, D, bias = (torch.empty(*size, device="meta") for size in ((d, n), (d,), (d,)))
        B, C = (torch.empty(b, l, n, device="meta") for _ in range(2))
        return (*steps[:2], A, B, C, D, steps[2] if gate else None, bias)

    plain: dict[str, Any] = dict(
        initial_state=None, order=None, rows=None, dt_softplus=True, reverse=False, rule="euler"
    )

    def forward(save: bool, *size: Any, powers: bool = False, **more: Any) -> Any:
        return lambda: triton.forward(*tensors(*size, **more), **plain, save=save, powers=powers)

    def projected(b: int, l: int, d: int, n: int, dtype: torch.dtype, rank: int) -> Any:
        x, _, *rest = tensors(b, l, d, n, dtype)
        low, weight = torch.empty(b, l, rank, dtype=dtype, device="meta"), torch.empty(d, 1 + rank, device="meta")
        given: tuple[Any, ...] = (x, low, *rest[:-1], weight)
        return lambda: triton.forward(*given, **plain, save=True)

    def backward(*size: Any) -> Any:
        given: tuple[Any, ...] = tensors(*size)
        kept = torch.empty(triton.boundaries_shape(given[2], given[1].shape, size[0]), device="meta")
        return lambda: triton.backward(*(given[0], None, kept, *given), **plain)

    def cut(run: Callable[[], Any]) -> Callable[[], Any]:
        def long() -> None:
            with mock.patch.object(triton_long, "steps_of", return_value=1024):
                run()

        return long

    language, vision, half = (8, 4096, 2048, 16), (64, 197, 384, 16), torch.bfloat16
    return {
        "language forward": forward(False, *language, half, gate=False),
        "language forward, states kept": forward(True, *language, half),
        "language backward": backward(*language, half),
        "language forward, one exponential": forward(False, *language, half, gate=False, powers=True),
        "vision forward": forward(False, *vision, half),
        "vision forward, steps of low rank": projected(*vision, half, 24),
        "language forward, float32": forward(True, *language, torch.float32),
        "language backward, float32": backward(*language, torch.float32),
        "one state forward": forward(True, 64, 196, 384, 1, half),
        "one state backward": backward(64, 196, 384, 1, half),
        "64 states forward": forward(True, 8, 1024, 512, 64, half),
        "64 states backward": backward(8, 1024, 512, 64, half),
        "long forward": cut(forward(True, 1, 131072, 1536, 16, half)),
    }


def option_cases() -> dict[str, Callable[[], Any]]:
    """The selective scan with the options that the benchmark's shapes leave out: what has to compile at all."""
    from .rows import Row
    from .selective_scan import triton, triton_long

    def both(
        k: int, rule: str, reverse: bool, rows: list[Row] | None, dtype: torch.dtype, constant: bool = False
    ) -> Any:
        b, l, d, n, own = 2 - (rows is not None), 300, 96, 12, (k,) if k else ()

        def meta(*size: int, to: torch.dtype = dtype) -> Tensor:
            return torch.empty(*size, dtype=to, device="meta")

        wide = torch.float64 if dtype == torch.float64 else torch.float32
        M = meta(d, n, to=wide) if constant else meta(*own, b, l, n, to=wide)
        x, dt, A = meta(b, l, d), meta(*own, b, l, d), meta(*own, d, n, to=wide)
        state = meta(*own, len(rows or "ab"), d, n, to=wide)
        given: tuple[Any, ...] = (x, dt, A, M, M, meta(*own, d, to=wide), x, meta(*own, d, to=wide), state)
        options: tuple[Any, ...] = (
            torch.empty(k, l, dtype=torch.int64, device="meta") if k else None,
            rows,
            True,
            reverse,
            rule,
        )
        kept = meta(*triton.boundaries_shape(A, dt.shape, len(rows or "ab")), to=wide)

        def run() -> None:
            with mock.patch.object(triton_long, "steps_of", return_value=64):
                triton.forward(*given, *options, save=True)
                triton.backward(x, state, kept, *given, *options)

        return run

    packed = [Row(0, 0, 100), Row(0, 100, 200)]
    return {
        "zoh, packed, reverse, in pieces": both(0, "zoh", True, packed, torch.float32),
        "bilinear, constant B and C, in pieces": both(0, "bilinear", False, None, torch.float16, True),
        "four routes": both(4, "euler", False, None, torch.bfloat16),
        "float64": both(0, "euler", True, packed, torch.float64),
    }


def other_cases() -> dict[str, Callable[[], Any]]:
    """Launches of the linear recurrence and the causal convolution by name."""
    from .causal_conv1d import triton as conv
    from .linear_recurrence import triton as recurrence

    def meta(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*size, dtype=dtype, device="meta")

    cases: dict[str, Callable[[], Any]] = {}
    for name, dtype in (("real", torch.float32), ("complex", torch.complex64)):
        b, h0 = meta(8, 4096, 1024, dtype=dtype), meta(8, 1024, dtype=dtype)
        for kind, a in (("varying", b), ("constant", meta(1024, dtype=dtype))):
            key = f"{name} {kind} recurrence"
            cases[f"{key} forward"] = functools.partial(recurrence.forward, a, b, h0, None, False)
            cases[f"{key} backward"] = functools.partial(recurrence.backward, b, h0, b, a, b, h0, None, False)
    x, state = meta(8, 4096, 2048, dtype=torch.bfloat16), meta(8, 3, 2048)
    weight, bias = meta(2048, 4), meta(2048)
    cases["convolution forward"] = functools.partial(conv.forward, x, weight, bias, state, None, True, False)
    cases["convolution backward"] = functools.partial(
        conv.backward, x, state, x, weight, bias, state, None, True, False
    )
    return cases


def chunked_cases() -> dict[str, Callable[[], Any]]:
    """Launches of the matrix-valued scan by name: a Mamba-2 layer's, in the dtypes that there are."""
    from .chunked_scan import triton

    def both(dtype: torch.dtype, b: int, l: int, h: int, g: int, n: int, p: int) -> Callable[[], Any]:
        wide = torch.float64 if dtype == torch.float64 else torch.float32

        def meta(*size: int, to: torch.dtype = dtype) -> Tensor:
            return torch.empty(*size, dtype=to, device="meta")

        q, v, decay, state = meta(b, l, g, n), meta(b, l, h, p), meta(b, l, h, to=wide), meta(b, h, n, p, to=wide)

        def run() -> None:
            triton.forward(q, q, v, decay, state, None, False, 64)
            triton.backward(v, state, q, q, v, decay, state, None, False, 64)

        return run

    return {
        "chunked scan": both(torch.bfloat16, 8, 4096, 32, 1, 128, 64),
        "chunked scan, float32": both(torch.float32, 8, 4096, 32, 1, 128, 64),
        "chunked scan, small, float64": both(torch.float64, 2, 50, 6, 3, 20, 12),
    }


def launches(run: Callable[[], Any]) -> list[tuple[Any, int, dict[str, Any]]]:
    """The kernels that `run` launches, their warps and arguments."""
    from . import triton_common

    caught: list[tuple[Any, int, dict[str, Any]]] = []

    def catch(op: str, kernel: Any, programs: int, warps: int, **named: Any) -> None:
        caught.append((kernel, warps, named))

    users = [m for m in list(sys.modules.values()) if getattr(m, "launch", None) is triton_common.launch]
    with contextlib.ExitStack() as stack:
        for module in users:
            stack.enter_context(mock.patch.object(module, "launch", catch))
        run()
    return caught


def compile_launch(kernel: Any, warps: int, named: dict[str, Any], capability: int) -> Any:
    """What triton.jit would have compiled for this launch, for compute capability 10 x major + minor."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}
    for at, parameter in enumerate(kernel.params):
        name, value = parameter.name, named.get(parameter.name, parameter.default)
        if isinstance(value, Tensor):
            signature[name] = "*" + TYPES[value.dtype]
            aligned = not parameter.do_not_specialize_on_alignment
        elif parameter.is_constexpr or value is None or value == 1:
            signature[name], constants[name] = "constexpr", value
            continue
        else:
            signature[name] = "i32" if abs(value) < 2**31 else "i64"
            aligned = value % 16 == 0
        if aligned:
            attributes[(at,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})


def disassemble(binary: bytes) -> tuple[str, str]:
    """The machine code, and what it uses, by the cuobjdump that comes with triton."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        words = ([str(tool), flag, file.name] for flag in ("-sass", "-res-usage"))
        done = [subprocess.run(w, capture_output=True, text=True, check=True) for w in words]
    return done[0].stdout, done[1].stdout + done[1].stderr


def longest_loop(code: list[tuple[int, str]]) -> int:
    """Instructions between the target and the end of the backward jump that goes furthest."""
    longest = 0
    for address, text in code:
        target = re.search(r"BRA.*?0x([0-9a-f]+)", text)
        if target and int(target[1], 16) < address:
            longest = max(longest, sum(int(target[1], 16) <= a <= address for a, _ in code))
    return longest


def read(case: str, name: str, warps: int, made: Any) -> Compiled:
    """What the compiled kernel's code says."""
    sass, usage = disassemble(made.asm["cubin"])
    found = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", sass, re.MULTILINE)
    code = [(int(address, 16), text) for address, text in found if "NOP" not in text]
    words = [text.split()[1 if text.startswith("@") else 0].split(".")[0] for _, text in code]
    registers = re.search(r"REG:(\d+)", usage)
    assert registers is not None, usage
    return Compiled(
        case, name, warps, int(registers[1]), made.metadata.shared, len(code), longest_loop(code),
        sum(word in ("LDL", "STL") for word in words), words.count("SHFL"),
        made.asm["ptx"].count("ex2.approx.ftz.f32"), made.asm["ptx"].count("ex2.approx.f32"),
    )  # fmt: skip


def compile_all(names: list[str] | None = None, capability: int = 90) -> list[Compiled]:
    """Compile the kernels of the named cases, or of all.

    Raises:
        ValueError: No such case.
    """
    cases = {**selective_scan_cases(), **option_cases(), **other_cases(), **chunked_cases()}
    if unknown := set(names or ()) - set(cases):
        raise ValueError(f"offline: no case {sorted(unknown)}, expected some of {list(cases)}")
    return [
        read(case, kernel.fn.__name__, warps, compile_launch(kernel, warps, named, capability))
        for case in names or cases
        for kernel, warps, named in launches(cases[case])
    ]


def main() -> None:
    """Parse the command line, compile, print a table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m ssm_kernels.offline", description=__doc__)
    parser.add_argument("--case", nargs="+", help="cases to compile (default: all)")
    parser.add_argument("--capability", type=int, default=90, help="compute capability (default: 90, Hopper)")
    parser.add_argument("--json", action="store_true", help="print JSON, not Markdown")
    args = parser.parse_args()
    made = compile_all(args.case, args.capability)
    if args.json:
        print(json.dumps([asdict(m) for m in made]))
        return
    head = list(asdict(made[0]))
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for m in made:
        print("| " + " | ".join(str(v) for v in asdict(m).values()) + " |")


if __name__ == "__main__":
    main()
