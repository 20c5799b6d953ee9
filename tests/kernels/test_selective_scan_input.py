"""What the selective scan refuses: one sentence that names the argument."""

import pytest
import torch
from ssm_kernels import selective_scan

from tests.kernels.test_selective_scan import arguments


class TestBadInput:
    def check(self, message, **changes):
        tensors = {**arguments(d=6, dtype=torch.float32), **changes}
        with pytest.raises(ValueError, match=message):
            selective_scan(**tensors)

    def test_shapes(self):
        self.check(
            r"dt has shape \(2, 16, 6\), expected \(b=2 from x, l=17 from x, d=6 from x\)", dt=torch.zeros(2, 16, 6)
        )
        self.check(r"A has shape \(5, 3\), expected \(d=6 from x, n\)", A=torch.zeros(5, 3))
        self.check(r"B has shape \(2, 17, 4\)", B=torch.zeros(2, 17, 4))
        self.check(r"C has shape \(2, 17\)", C=torch.zeros(2, 17))
        self.check(r"D has shape \(5,\)", D=torch.zeros(5))
        self.check(r"initial_state has shape \(1, 6, 3\), expected \(r=2", initial_state=torch.zeros(1, 6, 3))
        self.check(r"x has shape \(17, 6\), expected \(b, l, d\)", x=torch.zeros(17, 6))
        self.check(
            r"d=6 channels cannot be cut into g=4 groups", B=torch.zeros(2, 17, 4, 3), C=torch.zeros(2, 17, 4, 3)
        )
        self.check(r"give both in 2 groups", B=torch.zeros(2, 17, 2, 3))

    def test_dtypes(self):
        self.check("x has dtype int64", x=torch.zeros(2, 17, 6, dtype=torch.int64))
        self.check("B has dtype complex64", B=torch.zeros(2, 17, 3, dtype=torch.complex64))
        self.check("x must be a torch.Tensor, got list", x=[1.0])

    def test_device(self):
        self.check("z is on meta, but x is on cpu", z=torch.zeros(2, 17, 6, device="meta"))

    def test_rule_and_backend(self):
        self.check("rule='euler2', expected one of 'euler', 'zoh', 'bilinear'", rule="euler2")
        self.check("backend='cuda'", backend="cuda")
        with pytest.raises(RuntimeError, match="backend 'triton' cannot run here"):
            selective_scan(**arguments(), backend="triton")

    @pytest.mark.parametrize(
        ("bounds", "message"),
        [
            ([0, 5, 16], "end at l=17, got 0 and 16"),
            ([1, 17], "start at 0"),
            ([0, 9, 5, 17], "must not fall, got 9 then 5 at entry 2"),
            ([0], "at least two entries"),
        ],
    )
    def test_bounds(self, bounds, message):
        tensors = arguments(b=1)
        with pytest.raises(ValueError, match=message):
            selective_scan(**tensors, cu_seqlens=torch.tensor(bounds))

    def test_rows(self):
        with pytest.raises(ValueError, match="packed input .* needs batch size 1, got 2"):
            selective_scan(**arguments(), cu_seqlens=torch.tensor([0, 17]))
        with pytest.raises(ValueError, match=r"lengths\[1\]=18, expected 0..17"):
            selective_scan(**arguments(), lengths=torch.tensor([3, 18]))
        with pytest.raises(ValueError, match="lengths has dtype float32"):
            selective_scan(**arguments(), lengths=torch.tensor([3.0, 1.0]))
        with pytest.raises(ValueError, match="not both"):
            selective_scan(**arguments(b=1), lengths=torch.tensor([3]), cu_seqlens=torch.tensor([0, 17]))
