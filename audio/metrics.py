"""How good, and how varied, generated clips are, by a classifier's features and class probabilities.

    FID   |m - m'|^2 + tr(S + S' - 2 (S S')^1/2)      m, S: mean and covariance of features
    IS    exp E KL(p(y|x) || p(y))                    mIS   exp E KL(p(y|x) || p(y|x')) over pairs
    AM    KL(p_train(y) || p(y)) + E H(p(y|x))        NDB   share of bins that the clips fill otherwise than training

Sources: Heusel et al. 2017 (FID); Salimans et al. 2016 (IS); Gurumurthy et al. 2017 (mIS); Zhou et al. 2018 (AM);
Richardson & Weiss 2018 (NDB), all as Kong et al. 2021, DiffWave, app. and Goel et al. 2022 use them on SC09.
"""

from dataclasses import asdict, dataclass

import numpy as np
from torch import Tensor

BINS = 50
SIGNIFICANCE = 0.05
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The numbers of one set of clips."""

    fid: float
    """Frechet distance of the features to the training clips'. Less is better."""
    inception: float
    """IS by its definition. More is better, the number of classes is the most."""
    inception_upstream: float
    """What the evaluation code published with SaShiMi calls IS; see `inception_upstream`."""
    modified_inception: float
    """mIS. More is better."""
    activation: float
    """AM. Less is better."""
    different_bins: float
    """NDB over its number of bins. Less is better."""

    def row(self) -> list[float]:
        """The values, in the order of the fields."""
        return list(asdict(self).values())


def quality(features: Tensor, chances: Tensor, real_features: Tensor, real_chances: Tensor) -> Quality:
    """All metrics of a set of clips against the training clips.

    Args:
        features: Of the clips, shape (n, d).
        chances: Class probabilities, shape (n, c).
        real_features: Of the training clips, shape (m, d).
        real_chances: Shape (m, c).
    Raises:
        ValueError: Fewer than two clips.
    """
    if min(len(features), len(real_features)) < 2:
        raise ValueError(f"quality: {len(features)} and {len(real_features)} clips, expected at least two of each")
    return Quality(
        fid=frechet_distance(features, real_features),
        inception=inception(chances),
        inception_upstream=inception_upstream(chances),
        modified_inception=modified_inception(chances),
        activation=activation(chances, real_chances),
        different_bins=different_bins(features, real_features),
    )


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """FID between two sets of features, shapes (n, d) and (m, d)."""
    from scipy.linalg import sqrtm

    x, y = a.double().numpy(), b.double().numpy()
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    # A trace of the root of a product that is singular wherever there are fewer clips than features: a small ridge.
    ridge = 1e-9 * (np.trace(cov_x) + np.trace(cov_y)) / len(cov_x) * np.eye(len(cov_x))
    root = sqrtm((cov_x + ridge) @ (cov_y + ridge)).real
    return float(max(0.0, np.square(x.mean(0) - y.mean(0)).sum() + np.trace(cov_x + cov_y - 2 * root)))


def inception(chances: Tensor) -> float:
    """IS by its definition, of class probabilities (n, c)."""
    p = chances.double().clamp_min(_TINY)
    return float((p * (p.log() - p.mean(0).log())).sum(1).mean().exp())


def inception_upstream(chances: Tensor) -> float:
    """The number that upstream's evaluation prints as IS, of class probabilities (n, c).

    There the entropy runs over the clips where it should run over the classes: each class's probabilities are scaled to
    one over all clips and compared with an even spread, so the share of a class in the set cancels. Nearly the same as
    IS when all classes are as frequent; use it only beside numbers that were made so.
    """
    share = chances.double().clamp_min(_TINY)
    share = share / share.sum(0)
    return float((share * (share * len(share)).log()).sum(0).mean().exp())


def modified_inception(chances: Tensor) -> float:
    """mIS of class probabilities (n, c): how different two clips are on average. Source: Gurumurthy et al. 2017."""
    p = chances.double().clamp_min(_TINY)
    entropy = (p * p.log()).sum(1).mean()
    return float((entropy - p.mean(0) @ p.log().mean(0)).exp())


def activation(chances: Tensor, real_chances: Tensor) -> float:
    """AM of class probabilities (n, c), beside the training clips' (m, c). Source: Zhou et al. 2018."""
    p, real = chances.double().clamp_min(_TINY), real_chances.double().mean(0).clamp_min(_TINY)
    return float((real * (real.log() - p.mean(0).log())).sum() - (p * p.log()).sum(1).mean())


def different_bins(features: Tensor, real_features: Tensor, bins: int = BINS, seed: int = 0) -> float:
    """NDB / bins: K-means bins of the training features in which the share of clips differs significantly.

    Args:
        features: Shape (n, d).
        real_features: Shape (m, d).
        bins: At most; a tenth of the training clips at most.
        seed: Of the bins.
    Source: Richardson & Weiss 2018, On GANs and GMMs, sec. 3: the two-proportion z-test.
    """
    from scipy.cluster.vq import kmeans2
    from scipy.stats import norm

    real, other = real_features.double().numpy(), features.double().numpy()
    bins = max(2, min(bins, len(real) // 10))
    centres, own = kmeans2(real, bins, minit="++", rng=seed)
    nearest = np.square(other[:, None] - centres[None]).sum(-1).argmin(1)
    p = np.bincount(own, minlength=bins) / len(real)
    q = np.bincount(nearest, minlength=bins) / len(other)
    pooled = (p * len(real) + q * len(other)) / (len(real) + len(other))
    error = np.sqrt(np.maximum(pooled * (1 - pooled) * (1 / len(real) + 1 / len(other)), _TINY))
    return float((2 * norm.sf(np.abs(p - q) / error) < SIGNIFICANCE).mean())
