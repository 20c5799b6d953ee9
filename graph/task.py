"""The training task: loss, whole-part scores, optimiser."""

from collections.abc import Sequence

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.utils import unbatch_edge_index

from ssmcore.engine import cosine_schedule, make_optimizer

from .batches import Graphs, collate
from .config import Schema
from .metrics import evaluate, reciprocal_ranks
from .models import GraphModel
from .precompute import topology_of
from .synthetic import answered


class GraphTask(pl.LightningModule):
    """Train a GraphModel; log val_loss and val_score, the data set's own metric over the whole validation part.

    Args:
        model: The network.
        order: Order of the stored ranks, or None; see `graph.precompute`.
        lr: Peak learning rate.
        weight_decay: Of the parameters that decay.
        steps: Optimiser steps of the whole run, for the schedule.
        warmup: Steps in which the learning rate rises.
    """

    def __init__(self, model: GraphModel, order: str | None, lr: float, weight_decay: float, steps: int, warmup: int):
        super().__init__()
        self.model, self.order = model, order
        self.lr, self.weight_decay, self.steps, self.warmup = lr, weight_decay, steps, warmup

    @property
    def schema(self) -> Schema:
        """What is predicted."""
        return self.model.schema

    def training_step(self, batch: tuple[Tensor, Batch], batch_idx: int) -> Tensor:
        """Mean loss over the answers that are asked for."""
        scores, y = self.answers(batch[1])
        return loss_of(self.schema, scores, y)

    def answers(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores and true answers of a batch: (g, c) and (g,) or (g, t); of nodes likewise; of pairs (m,) and (m,)."""
        pairs = batch.edge_label_index if self.schema.level == "link" else None
        topology = topology_of(batch, self.order)
        x, edge_attr = batch.x, batch.edge_attr if self.schema.edge is not None else None
        scores = self.model(x, batch.edge_index, batch.batch, edge_attr, topology=topology, pairs=pairs)
        y = batch.edge_label if pairs is not None else batch.y
        return scores, y.flatten() if "cross_entropy" in self.schema.loss else y.view_as(scores)

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self.seen: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def validation_step(self, batch: tuple[Tensor, Batch], batch_idx: int) -> None:
        """Keep scores and answers, graph by graph."""
        self.seen |= self.predict(batch)

    def predict(self, batch: tuple[Tensor, Batch]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Scores and answers of each graph by its number; for ranks, 1 / rank of each true pair and zeros."""
        numbers, graphs = batch
        if self.schema.level == "link":
            return self._ranks(numbers, graphs)
        scores, y = self.answers(graphs)
        counts = torch.ones_like(numbers) if self.schema.level == "graph" else graphs.ptr.diff()
        pieces = zip(scores.float().cpu().split(counts.tolist()), y.cpu().split(counts.tolist()), strict=True)
        return {int(i): (s.numpy(), t.numpy()) for i, (s, t) in zip(numbers, pieces, strict=True)}

    def _ranks(self, numbers: Tensor, graphs: Batch) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Every pair of nodes of a graph is scored, so that the true ones can be ranked."""
        filtered, found = self.schema.metric == "mrr_filtered", {}
        true = graphs.edge_label_index[:, graphs.edge_label == 1]
        by_graph = unbatch_edge_index(true, graphs.batch)
        for i, number in enumerate(numbers.tolist()):
            nodes = slice(int(graphs.ptr[i]), int(graphs.ptr[i + 1]))
            mine = graphs.batch[graphs.edge_index[0]] == i
            n, edges = nodes.stop - nodes.start, graphs.edge_index[:, mine] - nodes.start
            every = torch.cartesian_prod(*[torch.arange(n, device=edges.device)] * 2).T
            edge_attr = None if graphs.edge_attr is None else graphs.edge_attr[mine]
            scores = self.model(graphs.x[nodes], edges, None, edge_attr, pairs=every).float().view(n, n).cpu().numpy()
            pairs = by_graph[i].cpu().numpy() if i < len(by_graph) else np.zeros((2, 0), dtype=int)
            ranks = reciprocal_ranks(scores, pairs, filtered)
            found[number] = (ranks, np.zeros_like(ranks))
        return found

    def on_validation_epoch_end(self) -> None:
        """Gather from all processes, score, log."""
        seen = self.seen
        if self.trainer.world_size > 1:
            parts: list = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(parts, seen)
            seen = {number: value for part in parts for number, value in part.items()}
        self.log("val_score", score(self.schema, seen))

    def configure_optimizers(self) -> dict:
        """AdamW by what the modules ask for, half a cosine after a short rise."""
        optimizer = make_optimizer(self.model, self.lr, self.weight_decay)
        if self.trainer.precision != "16-mixed":  # a loss scaler would clip gradients behind a fused step's back
            for group in optimizer.param_groups:  # one call for all parameters: small networks have many small ones
                group["fused"] = True
        schedule = cosine_schedule(optimizer, self.steps, self.warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def score(schema: Schema, seen: dict[int, tuple[np.ndarray, np.ndarray]]) -> float:
    """The data set's metric from the scores and answers of each graph.

    Args:
        schema: Says which metric.
        seen: Scores (m, c) and answers (m,) or (m, t) by the graph's number.
    Raises:
        GraphError: There is nothing to score.
    """
    scores, y = (np.concatenate(parts) for parts in zip(*(seen[i] for i in sorted(seen)), strict=True))
    if schema.metric.startswith("mrr"):
        return float(scores.mean()) if len(scores) else 0.0
    known = answered(torch.from_numpy(y)).numpy()
    if schema.metric not in ("ap", "roc_auc"):  # these leave out unknown answers task by task
        rows = known if known.ndim == 1 else known.all(1)
        scores, y = scores[rows], y[rows]
    return evaluate(schema.metric, scores, y)


@torch.no_grad()
def score_graphs(task: GraphTask, graphs: Sequence[Data], chosen: Sequence[int], batch_size: int) -> float:
    """The score of a trained task on some graphs, in evaluation mode, on its device. Raises GraphError as `score`.

    Every process scores all of them, so that all find the same.
    """
    task.eval()
    seen, data = {}, Graphs(graphs, chosen)
    for start in range(0, len(data), batch_size):
        numbers, batch = collate([data[i] for i in range(start, min(start + batch_size, len(data)))])
        seen |= task.predict((numbers, batch.to(task.device)))
    return score(task.schema, seen)


def loss_of(schema: Schema, scores: Tensor, y: Tensor) -> Tensor:
    """Mean loss over the answers that are asked for.

    Args:
        schema: Says which loss.
        scores: Shape (m, c), or the shape of y.
        y: Classes (m,), or numbers (m, t) with NaN where not known.
    Returns:
        A number; 0 with a gradient where nothing is asked.
    """
    known = answered(y)
    if "cross_entropy" in schema.loss:
        weight = None
        if schema.loss == "weighted_cross_entropy":  # by how rare a class is in this batch
            counts = torch.bincount(y[known], minlength=scores.shape[1]).to(scores.dtype)
            weight = torch.where(counts > 0, 1 - counts / counts.sum(), 0)
            weight = weight if bool((weight > 0).any()) else None
        return F.cross_entropy(scores[known], y[known], weight=weight) if known.any() else scores.sum() * 0
    truth = torch.where(known, y, 0).to(scores.dtype)
    kinds = {"bce": F.binary_cross_entropy_with_logits, "mae": F.l1_loss, "mse": F.mse_loss}
    errors = kinds[schema.loss](scores, truth, reduction="none")
    return torch.where(known, errors, 0).sum() / known.sum().clamp_min(1)
