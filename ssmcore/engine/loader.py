"""A data loader that goes on exactly where it stopped: the order is a function of (seed, epoch), the place is saved."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler
from torchdata.stateful_dataloader import StatefulDataLoader

Arrange = Callable[[list[int], torch.Generator], list[int]]


class EpochSampler(Sampler[int]):
    """Every index once an epoch, in an order that depends on (seed, epoch) alone; ranks take turns.

    Args:
        size: Indices 0 .. size-1.
        seed: Of the order.
        shuffle: False keeps 0, 1, 2, ...
        limit: Indices an epoch, on one rank; None for all.
        repeats: Draws of an index in a row; an epoch stays as long, so a part of the indices waits for another one.
        keyed: Give draw * size + index, with another draw for every epoch and repeat, in place of the bare index: an
            item that is random can then draw its noise from this number alone.
        arrange: Puts an epoch's shuffled indices into another order, given a seeded generator: such as one where items
            of like size stand together.
    """

    def __init__(
        self,
        size: int,
        seed: int,
        *,
        shuffle: bool = True,
        limit: int | None = None,
        repeats: int = 1,
        keyed: bool = False,
        arrange: Arrange | None = None,
    ):
        self.size, self.seed, self.shuffle, self.limit = size, seed, shuffle, limit
        self.repeats, self.keyed, self.arrange = repeats, keyed, arrange
        self.epoch = 0
        self.generator = torch.Generator()  # the loader's own; reset each epoch, so a resumed run draws the same seeds

    def set_epoch(self, epoch: int) -> None:
        """The Trainer says which epoch comes."""
        self.epoch = epoch
        self.generator.manual_seed(_mix(self.seed, epoch, 1))

    def order(self, epoch: int) -> list[int]:
        """Indices of an epoch on this rank; short ranks repeat from the front, so that all have as many."""
        rank, ranks = _rank()
        if self.shuffle:
            seeded = torch.Generator().manual_seed(_mix(self.seed, epoch, 0))
            indices = torch.randperm(self.size, generator=seeded).tolist()
            if self.arrange is not None:
                indices = self.arrange(indices, seeded)
        else:
            indices = list(range(self.size))
        if self.keyed or self.repeats > 1:
            draws = [epoch * self.repeats + r for r in range(self.repeats)]
            indices = [draw * self.size * self.keyed + i for i in indices for draw in draws][: self.size]
        indices += indices[: -self.size % ranks]
        return indices[rank::ranks][: self.limit]

    def __iter__(self) -> Iterator[int]:
        return _EpochOrder(self)

    def __len__(self) -> int:
        return min(-(-self.size // _rank()[1]), self.limit or self.size)


class _EpochOrder(Iterator[int]):
    """Iterator whose place can be saved. The order is made at the first step, when the epoch is known."""

    def __init__(self, sampler: EpochSampler):
        self.sampler = sampler
        self.epoch: int | None = None
        self.place = 0
        self.indices: list[int] = []

    def __next__(self) -> int:
        if self.epoch is None:
            self._start(self.sampler.epoch)
        if self.place == len(self.indices):
            raise StopIteration
        self.place += 1
        return self.indices[self.place - 1]

    def _start(self, epoch: int) -> None:
        self.epoch, self.indices = epoch, self.sampler.order(epoch)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["epoch"] is not None:
            self._start(state["epoch"])
        self.place = state["place"]


class _Loader(StatefulDataLoader):
    """A stopped epoch goes on; an epoch that had given its last batch counts as finished, so the next one starts."""

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if state.get("_num_yielded") == len(self):
            state["_iterator_finished"] = True
        return state


def make_loader(
    dataset: Dataset,
    batch_size: int,
    *,
    seed: int,
    shuffle: bool = True,
    steps_per_epoch: int | None = None,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
    repeats: int = 1,
    keyed: bool = False,
    arrange: Arrange | None = None,
) -> StatefulDataLoader:
    """Batches of a map-style dataset, for exact resume at any batch.

    Items must not depend on the global random state when num_workers is 0; draw noise in the task's steps (reseeded by
    step) or from a generator keyed by the index.

    Args:
        dataset: Has `__len__` and `__getitem__`.
        batch_size: Items a batch on each rank; the last batch of an epoch may be smaller.
        seed: Of the order and of the workers.
        shuffle: False for validation.
        steps_per_epoch: Batches an epoch; None for all.
        num_workers: Processes.
        collate_fn: As in torch.
        repeats: As in EpochSampler.
        keyed: As in EpochSampler; `dataset[key]` then gets the key.
        arrange: As in EpochSampler.
    Raises:
        ValueError: The dataset is empty or batch_size is not positive.
    """
    size = len(dataset)  # pyright: ignore[reportArgumentType]
    if size < 1 or batch_size < 1:
        raise ValueError(f"make_loader: {size} items in batches of {batch_size}; both must be at least 1")
    limit = steps_per_epoch * batch_size if steps_per_epoch else None
    sampler = EpochSampler(size, seed, shuffle=shuffle, limit=limit, repeats=repeats, keyed=keyed, arrange=arrange)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*set_vital")  # torchdata calls what torch deprecates
        return _Loader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=num_workers,
            collate_fn=collate_fn,
            generator=sampler.generator,
            persistent_workers=False,
        )


def _mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers; neighbours give unrelated seeds (splitmix64)."""
    value = 0
    for number in numbers:
        value = (value + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 31
    return value >> 1


def _rank() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
