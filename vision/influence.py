"""What an image classifier looked at, by gradient: which pixels made a class likely, and how far one position sees.

b batch, c channels of the image, height and width in pixels.
"""

import torch
from torch import Tensor, nn

from .errors import DataError


def influence(model: nn.Module, image: Tensor, target: int, steps: int = 24, chunk: int = 8) -> Tensor:
    """Integrated gradients: how much each pixel, against mean grey, adds to the logit of a class.

    The gradient is averaged along the straight path from a grey image (zeros after normalisation) to the image; the
    whole then adds up to the difference of the two logits, up to the error of the quadrature.

    Args:
        model: Images to logits (b, classes), without dropout (it is put into evaluation mode).
        image: Prepared, shape (1, c, height, width).
        target: Number of the class.
        steps: Midpoints of the path.
        chunk: Of them at a time.
    Returns:
        Signed, in units of the logit, shape (height, width).
    Raises:
        ValueError: Not one image, or no step.
    Source: Sundararajan, Taly and Yan 2017, Axiomatic Attribution for Deep Networks, sec. 3.
    """
    if image.ndim != 4 or image.shape[0] != 1 or steps < 1:
        raise ValueError(f"influence: expected one image (1, c, h, w) and steps > 0, got {tuple(image.shape)}, {steps}")
    model.eval()
    path = (torch.arange(steps, device=image.device, dtype=image.dtype) + 0.5) / steps
    total = torch.zeros_like(image)
    for shares in path.split(chunk):
        images = (shares[:, None, None, None] * image.detach()).requires_grad_()
        with torch.enable_grad():
            logit = model(images)[:, target].sum()
            total += torch.autograd.grad(logit, images)[0].sum(0, keepdim=True)
    return (total / steps * image)[0].sum(0).detach()


def receptive_field(model: nn.Module, images: Tensor) -> Tensor:
    """Effective receptive field of the position in the middle of the last map of features.

    Args:
        model: A timm model with forward_intermediates.
        images: Prepared, shape (b, c, height, width); noise will do.
    Returns:
        Mean absolute gradient of that position's features, largest 1, shape (height, width).
    Raises:
        DataError: The model does not give its maps.
    Source: Luo et al. 2016, Understanding the Effective Receptive Field in Deep Convolutional Neural Networks.
    """
    if not hasattr(model, "forward_intermediates"):
        raise DataError(f"{type(model).__name__} does not give its maps of features (forward_intermediates)")
    model.eval()
    images = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        maps = model.forward_intermediates(images, indices=1, output_fmt="NCHW", intermediates_only=True)[-1]
        middle = maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2]
        gradient = torch.autograd.grad(middle.sum(), images)[0]
    field = gradient.abs().mean((0, 1))
    return (field / field.max().clamp_min(torch.finfo(field.dtype).tiny)).detach()


def cells(values: Tensor, most: int = 28) -> Tensor:
    """Mean over square cells, at most `most` of them a side: single pixels are too noisy to look at.

    Args:
        values: Shape (height, width).
        most: Cells along the longer side.
    Returns:
        Shape (height / s, width / s) for cells of s pixels, a rest at the right and below left out.
    """
    side = max(1, -(-max(values.shape) // most))
    return torch.nn.functional.avg_pool2d(values[None, None], side)[0, 0]
