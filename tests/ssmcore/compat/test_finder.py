"""`install()` makes the packages' names resolve to ours, each case in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssmcore.compat.finder import MODULES

ROOT = Path(__file__).parents[3]


def run(code, *folders) -> str:
    paths = [str(ROOT), str(ROOT / "kernels"), *map(str, folders)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Folders that hold packages of these names."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("mamba_ssm", "causal_conv1d"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("real = True\n")
    return folder


def test_imports_that_programs_write():
    run(
        "import importlib, importlib.util, ssmcore.compat\n"
        "from ssmcore.compat.finder import MODULES\n"
        "assert importlib.util.find_spec('mamba_ssm') is None\n"
        "ssmcore.compat.install(); ssmcore.compat.install()\n"
        "import mamba_ssm, causal_conv1d\n"
        "assert mamba_ssm.ops.triton.selective_state_update.selective_state_update\n"
        "from mamba_ssm import Mamba, Mamba2, selective_scan_fn, mamba_inner_fn\n"
        "from mamba_ssm.modules.mamba_simple import Mamba as Simple\n"
        "from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined\n"
        "from mamba_ssm.ops.triton.layernorm_gated import RMSNorm as RMSNormGated\n"
        "from mamba_ssm.utils.generation import InferenceParams\n"
        "from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel, create_block\n"
        "from mamba_ssm.models.config_mamba import MambaConfig\n"
        "from mamba_ssm.modules.block import Block\n"
        "from mamba_ssm.ops.selective_scan_interface import selective_scan_ref\n"
        "from causal_conv1d import causal_conv1d_fn, causal_conv1d_update\n"
        "assert Mamba is Simple is ssmcore.compat.Mamba\n"
        "from packaging.version import Version\n"
        "assert Version(mamba_ssm.__version__) > Version('2.0.4')\n"
        "for name, public in MODULES.items():\n"
        "    module = importlib.import_module(name)\n"
        "    assert all(callable(getattr(module, p)) for p in public), name\n"
        "try: import mamba_ssm.distributed\n"
        "except ModuleNotFoundError as e: assert 'mamba_ssm.distributed' in str(e)\n"
        "else: raise AssertionError\n"
    )


def test_every_place_exists():
    import importlib

    for offered in MODULES.values():
        for place in offered.values():
            home, name = place.split(".")
            assert callable(getattr(importlib.import_module(f"ssmcore.compat.{home}"), name))


def test_ours_come_first_and_go_again(real):
    run(
        "import sys, ssmcore.compat\n"
        "ssmcore.compat.install()\n"
        "import mamba_ssm, causal_conv1d.causal_conv1d_interface\n"
        "assert not hasattr(mamba_ssm, 'real')\n"
        "ssmcore.compat.uninstall(); ssmcore.compat.uninstall()\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('mamba_ssm', 'causal_conv1d')]\n"
        "import mamba_ssm, causal_conv1d\n"
        "assert mamba_ssm.real and causal_conv1d.real\n",
        real,
    )


def test_real_packages_that_are_imported_are_not_replaced(real):
    out = run(
        "import mamba_ssm, ssmcore.compat\n"
        "try: ssmcore.compat.install()\n"
        "except RuntimeError as e: print(e)\n"
        "import causal_conv1d\n"
        "assert mamba_ssm.real and causal_conv1d.real\n",
        real,
    )
    assert "mamba_ssm is imported already" in out
    assert "call install() before the first import" in out


def test_a_model_that_chose_before_is_named():
    out = run(
        "import sys, types, warnings\n"
        "late = types.ModuleType('transformers.models.mamba.modeling_mamba')\n"
        "late.selective_scan_fn = late.mamba_inner_fn = None\n"
        "sys.modules[late.__name__] = late\n"
        "import ssmcore.compat\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    ssmcore.compat.install()\n"
        "print(caught[-1].message)\n"
    )
    assert "transformers.models.mamba.modeling_mamba was imported before" in out
