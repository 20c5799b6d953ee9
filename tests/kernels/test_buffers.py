"""The cache of large buffers: memory is reused only after the last view is gone, and no more than the limit waits."""

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from ssm_kernels import buffers

SHAPE = (1024, 1024)


@pytest.fixture(autouse=True)
def clean():
    gc.collect()
    buffers.release()
    yield
    buffers.release()


@pytest.mark.skipif(buffers.LIMIT == 0, reason="the system does not say how much memory it has")
class TestBuffers:
    def test_memory_comes_back(self):
        first = buffers.empty(SHAPE, torch.float32)
        address = first.data_ptr()
        del first
        assert buffers.empty((1 << 20,), torch.float32).data_ptr() == address

    def test_a_view_keeps_the_memory(self):
        view = buffers.empty(SHAPE, torch.float32).fill_(7)[3:5]
        other = buffers.empty(SHAPE, torch.float32).fill_(1)
        assert (view == 7).all()
        assert other.data_ptr() != view.data_ptr()

    def test_autograd_keeps_the_memory(self):
        x = buffers.empty(SHAPE, torch.float32).fill_(3).requires_grad_()
        y = (x * x).sum()
        value = x
        del x
        buffers.empty(SHAPE, torch.float32).fill_(0)
        y.backward()
        assert (value.grad == 6).all()

    def test_no_more_than_the_limit_waits(self, monkeypatch):
        monkeypatch.setattr(buffers, "LIMIT", 5 << 20)
        tensors = [buffers.empty(SHAPE, torch.float32) for _ in range(3)]
        del tensors
        assert buffers._waiting == 4 << 20
        buffers.release()
        assert buffers._waiting == 0

    def test_a_block_may_come_back_while_another_is_taken(self):
        """As when the garbage collector frees a tensor in the middle of an allocation."""
        t = buffers.empty(SHAPE, torch.float32)
        with ThreadPoolExecutor(1) as pool:

            def collect_inside():
                nonlocal t
                with buffers._lock:
                    t = None
                return buffers._waiting

            assert pool.submit(collect_inside).result(timeout=10) == 4 << 20

    def test_threads(self):
        def work(value):
            for _ in range(50):
                t = buffers.empty(SHAPE, torch.float32).fill_(value)
                assert (t == value).all()
                del t
            return True

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(4)))


@pytest.mark.parametrize("shape", [(0, 3), (5,), (3, 500, 1000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_shapes_and_dtypes(shape, dtype):
    t = buffers.empty(shape, dtype)
    assert t.shape == shape
    assert t.dtype == dtype
    assert t.is_contiguous()
    t.fill_(2)
    assert (t == 2).all()
    assert torch.equal(t.clone(), t)
