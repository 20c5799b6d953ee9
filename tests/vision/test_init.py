"""`import vision` is cheap; what it promises is there."""

import subprocess
import sys

import pytest

import vision


def test_import_brings_neither_torch_nor_timm():
    code = "import sys, vision; print(sorted({'torch', 'timm', 'lightning'} & set(sys.modules)), dir(vision))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] ")
    assert all(name in done.stdout for name in vision.__all__)


def test_public_names():
    assert all(callable(getattr(vision, name)) for name in vision.__all__)
    with pytest.raises(AttributeError, match="no attribute 'create_modle'"):
        vision.create_modle
