"""State helpers on nested states."""

import pytest
import torch

from ssmcore import state as states

STATE = {"0": {"conv": torch.arange(6.0).view(3, 2), "pos": torch.tensor([4, 5, 6])}, "1": {}}


def test_gather_and_batch_size():
    picked = states.gather(STATE, torch.tensor([2, 0]))
    assert picked["0"]["conv"].tolist() == [[4, 5], [0, 1]]
    assert picked["0"]["pos"].tolist() == [6, 4]
    assert picked["1"] == {}
    assert states.batch_size(STATE) == 3
    assert states.batch_size({"a": {}}) is None
    with pytest.raises(ValueError, match="batch sizes"):
        states.batch_size({"a": torch.zeros(2), "b": torch.zeros(3)})


def test_to_keeps_kinds():
    state = {"h": torch.zeros(1, dtype=torch.complex64), "c": torch.zeros(1), "pos": torch.zeros(1, dtype=torch.int64)}
    cast = states.to(state, dtype=torch.float64)
    assert [t.dtype for t in cast.values()] == [torch.complex128, torch.float64, torch.int64]
    with pytest.raises(ValueError, match="real float"):
        states.to(state, dtype=torch.int32)


def test_where_and_detach():
    other = states.map_state(torch.zeros_like, STATE)
    mixed = states.where(torch.tensor([True, False, True]), STATE, other)
    assert mixed["0"]["conv"].tolist() == [[0, 1], [0, 0], [4, 5]]
    grown = {"h": torch.ones(1, requires_grad=True) * 2}
    assert not states.detach(grown)["h"].requires_grad


def test_keys_must_agree():
    with pytest.raises(ValueError, match="do not match"):
        states.map_state(torch.add, {"a": torch.zeros(1)}, {"b": torch.zeros(1)})
