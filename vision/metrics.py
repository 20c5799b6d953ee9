"""Top-1, top-5, loss and the score of every class, added up batch by batch."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Of one model on one part."""

    top1: float
    """Percent of the images whose class came first."""
    top5: float
    """Percent of the images whose class came among the first five (or all, if there are fewer)."""
    loss: float
    """Mean cross entropy, in nats."""
    images: int
    """How many counted."""
    recall: tuple[float, ...]
    """Percent of each class's images that were named rightly; NaN for a class without an image."""


class Tally:
    """Sums over a part, so that the last, smaller batch weighs no more than it should.

    Args:
        num_classes: c.
        device: Where the logits will be.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu"):
        kind = {"dtype": torch.float64 if str(device) == "cpu" else torch.float32, "device": device}
        self.loss = torch.zeros((), **kind)
        self.right, self.right5, self.seen = (torch.zeros(num_classes, **kind) for _ in range(3))

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            logits: Shape (b, c).
            labels: int64, shape (b,).
        """
        order = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        self.loss += F.cross_entropy(logits.float(), labels, reduction="sum").to(self.loss)
        for total, hits in ((self.right, order[:, 0]), (self.right5, order.any(1)), (self.seen, labels >= 0)):
            total.index_add_(0, labels, hits.to(total))

    def sums(self) -> Tensor:
        """Everything in one vector, for a sum over devices, shape (1 + 3 c,)."""
        return torch.cat([self.loss[None], self.right, self.right5, self.seen])

    @staticmethod
    def scores(sums: Tensor) -> Scores:
        """From what `sums` gave, shape (1 + 3 c,).

        Raises:
            ValueError: Not one image counted.
        """
        loss, (right, right5, seen) = sums[0], sums[1:].double().cpu().view(3, -1)
        images = float(seen.sum())
        if not images:
            raise ValueError("scores: no image was scored")
        return Scores(
            top1=100 * float(right.sum()) / images,
            top5=100 * float(right5.sum()) / images,
            loss=float(loss) / images,
            images=round(images),
            recall=tuple((100 * right / seen).tolist()),
        )
