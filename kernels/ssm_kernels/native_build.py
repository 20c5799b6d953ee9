"""Builds an operator's C file on first use, for the very CPU it runs on, and caches the library.

The cache key is a hash of the sources, the compiler's identity, the flags and the CPU model, so a changed file,
compiler or machine builds anew. The library is written under a temporary name and renamed into place: two processes
that build at once both succeed, and a half-written file is never loaded. A cached library that does not load is built
again.

Threads: native code runs its tasks through torch's own OpenMP pool (`GOMP_parallel` of the libgomp that torch loaded),
because a second pool would fight with torch's spinning workers for the cores.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch

log = logging.getLogger("ssm_kernels")

# No -ffast-math: it would let the compiler cancel the magic-number rounding that exp2 rests on.
FLAGS = (
    "-O3",
    "-std=gnu11",
    "-fPIC",
    "-shared",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-semantic-interposition",
)
COMMON = Path(__file__).with_name("native_common.h")


def cache_folder() -> Path:
    """Where built libraries lie: $SSM_KERNELS_CACHE, or ssm_kernels below the user's cache folder."""
    if "SSM_KERNELS_CACHE" in os.environ:
        return Path(os.environ["SSM_KERNELS_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ssm_kernels"


@functools.cache
def compiler() -> tuple[str, ...] | None:
    """The C compiler as a command ($CC, cc, gcc or clang), or None when the machine has none."""
    for candidate in (os.environ.get("CC"), "cc", "gcc", "clang"):
        words = tuple(shlex.split(candidate)) if candidate else ()
        if words and shutil.which(words[0]):
            return words
    return None


@functools.cache
def why_unavailable() -> str | None:
    """Why native code cannot be built here, or None when a trial build works; warns once with the remedy."""
    reason = _trial_build()
    if reason is not None:
        warnings.warn(
            f"ssm_kernels: {reason}; the slower PyTorch path is used. For the fast one install a C compiler "
            "(Debian and Ubuntu: apt install gcc; Fedora: dnf install gcc; macOS: xcode-select --install).",
            RuntimeWarning,
            stacklevel=2,
        )
    return reason


def _trial_build() -> str | None:
    if compiler() is None:
        return "no C compiler was found ($CC, cc, gcc, clang)"
    with tempfile.TemporaryDirectory() as box:
        source = Path(box, "trial.c")
        source.write_text("int answer(void) { return 42; }\n")
        try:
            _compile(source, Path(box, "trial.so"))
            assert ctypes.CDLL(str(Path(box, "trial.so"))).answer() == 42
        except (OSError, RuntimeError, AssertionError) as error:
            return f"the C compiler does not work ({error})"
    return None


@functools.cache
def machine_flags() -> tuple[str, ...]:
    """Flags that make the compiler use all of this CPU."""
    return ("-mcpu=native",) if platform.machine() in ("arm64", "aarch64", "ppc64le") else ("-march=native",)


@functools.cache
def _identity() -> str:
    """Compiler and CPU, as far as they change the machine code."""
    command = compiler()
    assert command is not None
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu += "".join(
            sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
        )
    return version + cpu + platform.platform()


def _compile(source: Path, target: Path, defines: tuple[str, ...] = ()) -> None:
    command = compiler()
    assert command is not None
    words = [*command, *FLAGS, *machine_flags(), *defines, str(source), "-o", str(target), "-lm"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")


def load(source: Path, defines: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The library built from `source` (and the *.h beside it), from the cache or built now.

    Args:
        source: The operator's C file; the name of its folder becomes the name of the library.
        defines: Preprocessor options, e.g. ("-DSSM_DOUBLE",) for the element type.
    Raises:
        RuntimeError: The compiler failed; its message is in the text.
        OSError: The library was built but does not load.
    """
    headers = [*sorted(source.parent.glob("*.h")), COMMON]
    digest = hashlib.sha256()
    for part in (source, *headers):
        digest.update(part.read_bytes())
    digest.update(repr((_identity(), compiler(), FLAGS, machine_flags(), defines)).encode())
    folder = cache_folder()
    target = folder / f"{source.parent.name}-{digest.hexdigest()[:16]}.so"
    if _is_whole(target):
        try:
            return _start(ctypes.CDLL(str(target)))
        except (OSError, AttributeError) as error:
            log.warning("cached %s does not load (%s): building it again", target.name, error)
    folder.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=folder, prefix=target.stem, suffix=".part")
    os.close(handle)
    try:
        _compile(source, Path(scratch), defines)
        checksum = hashlib.sha256(Path(scratch).read_bytes()).hexdigest()
        Path(scratch).replace(target)
        _checksum_file(target).write_text(checksum)
    finally:
        Path(scratch).unlink(missing_ok=True)
    return _start(ctypes.CDLL(str(target)))


def _checksum_file(target: Path) -> Path:
    return target.with_suffix(".sha256")


def _is_whole(target: Path) -> bool:
    """Whether a cached library is as it was built: loading a cut-off one would kill the process, not raise."""
    if not (target.exists() and _checksum_file(target).exists()):
        return False
    return _checksum_file(target).read_text() == hashlib.sha256(target.read_bytes()).hexdigest()


def _start(library: ctypes.CDLL) -> ctypes.CDLL:
    """Hand torch's parallel region to the library; without one it runs on one thread."""
    parallel = _torch_parallel()
    library.ssm_set_parallel.argtypes = [ctypes.c_void_p]
    library.ssm_set_parallel(parallel)
    return library


@functools.cache
def _torch_parallel() -> ctypes.c_void_p | None:
    """Address of GOMP_parallel in the OpenMP runtime that torch already runs on (LLVM's runtime exports it too)."""
    folder = Path(torch.__file__).parent
    places = [*folder.glob("lib/lib*omp*"), *folder.parent.glob("torch.libs/lib*omp*")]
    for place in places:
        try:
            return ctypes.cast(ctypes.CDLL(str(place)).GOMP_parallel, ctypes.c_void_p)
        except (OSError, AttributeError):
            continue
    log.info("torch's OpenMP runtime was not found: native code uses one thread")
    return None
