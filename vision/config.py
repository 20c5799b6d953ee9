"""What the commands of this room can be told, under timm's names. Plain dataclasses: importing this imports no torch.

Each group of options is a dataclass of its own; a command's config inherits the groups that it understands.
"""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which network."""

    model: str = "vim_tiny_patch16_224"
    """Any model of this package or of timm, e.g. vim_tiny_patch16_224, vmamba_tiny_s1l8, deit_tiny_patch16_224."""
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    """More options of the model: --model-kwargs.embed_dim 96 --model-kwargs.mixer s5."""
    pretrained: bool = False
    """Start from the weights that the authors published (needs the network)."""
    checkpoint: str | None = None
    """Weights to start from or to use: a run folder, or a .safetensors or .pth file of this package or of upstream."""
    num_classes: int | None = None
    """Classes of the head; None takes as many as the data have."""
    in_chans: int = 3
    """Channels of the image: 3 for colour, 1 for grey."""
    drop: float = 0.0
    """Dropout before the head."""
    drop_path: float | None = None
    """Stochastic depth of the last block."""
    channels_last: bool = False
    """Keep images and weights channel-last in memory."""
    torchcompile: bool = False
    """Compile the model with torch.compile."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which images, and how they are cut."""

    data_dir: str = ""
    """Folder or archive of images: <split>/<class>/<image> in a folder, .tar or .tar.gz, or a folder for --dataset."""
    dataset: str = ""
    """Empty for a folder or archive; torch/cifar10, torch/cifar100 and the like for torchvision's own layouts."""
    train_split: str = "train"
    """Name of the part to train on."""
    val_split: str = ""
    """Name of the part to score on; empty looks for val, validation or test."""
    class_map: str = ""
    """Text file with a class folder's name on each line, in the order of the classes; empty sorts the names."""
    img_size: int | None = None
    """Side of the images, in pixels; None is the model's own."""
    crop_pct: float | None = None
    """Share of the resized image that the central crop of an evaluation keeps; None is the model's own."""
    interpolation: str = ""
    """bilinear, bicubic, nearest, or random (training only); empty is the model's own."""
    mean: tuple[float, ...] | None = None
    """Mean of the channels, in [0, 1]; None is the model's own."""
    std: tuple[float, ...] | None = None
    """Standard deviation of the channels; None is the model's own."""
    bad_images: Literal["error", "skip"] = "error"
    """What to do with an image that cannot be read: stop and name it, or leave it out, name it and count."""
    batch_size: int = 128
    """Images a batch, on each device."""
    workers: int = 4
    """Processes that load images."""


@dataclass(frozen=True, kw_only=True)
class AugmentOptions:
    """What is done to training images."""

    no_aug: bool = False
    """Nothing at random: only resize and crop."""
    train_crop_mode: Literal["rrc", "rkrc", "rkrr"] = "rrc"
    """Random resized crop; resize keeping the ratio and crop; the same with a random ratio."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area that a random crop takes."""
    ratio: tuple[float, float] = (0.75, 4 / 3)
    """Range of the crop's width over height."""
    hflip: float = 0.5
    """Probability of a mirror image."""
    vflip: float = 0.0
    """Probability of an image upside down."""
    color_jitter: float = 0.4
    """Strength of random brightness, contrast and saturation; not used beside --aa."""
    aa: str | None = None
    """AutoAugment, RandAugment or AugMix in timm's notation, e.g. rand-m9-mstd0.5-inc1."""
    reprob: float = 0.0
    """Probability of erasing a random rectangle."""
    remode: Literal["const", "rand", "pixel"] = "pixel"
    """What an erased rectangle holds: zeros, one random colour, noise."""
    recount: int = 1
    """Rectangles."""
    aug_repeats: int = 1
    """Differently augmented copies of an image in a row (repeated augmentation)."""
    mixup: float = 0.0
    """Parameter of mixup's Beta distribution; 0 for none."""
    cutmix: float = 0.0
    """Parameter of cutmix's Beta distribution; 0 for none."""
    mixup_prob: float = 1.0
    """Probability that a batch is mixed at all."""
    mixup_switch_prob: float = 0.5
    """Probability of cutmix where both are on."""
    mixup_mode: Literal["batch", "pair", "elem"] = "batch"
    """Whether a batch, a pair or an image draws its own share."""
    mixup_off_epoch: int = 0
    """Epoch from which on nothing is mixed; 0 for never."""
    smoothing: float = 0.1
    """Label smoothing."""
    bce_loss: bool = False
    """Binary cross entropy for each class in place of the softmax's."""
    bce_target_thresh: float | None = None
    """Targets above it count as 1 for --bce-loss."""
    token_labels: str = ""
    """Folder of a teacher's label maps, <class>/<image>.pt, for models with a head for every cell (simba_*). With it
    --cutmix exchanges whole cells."""
    token_weight: float = 0.5
    """Weight of the cells' loss beside that of the class token."""


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """How the weights move."""

    opt: str = "adamw"
    """Any optimiser of timm's factory: adamw, sgd, lamb, lion, muon, ..."""
    opt_kwargs: dict[str, Any] = field(default_factory=dict)
    """More options of the optimiser: --opt-kwargs.betas [0.9,0.95]."""
    lr: float | None = None
    """Peak learning rate; None scales --lr-base by the batch."""
    lr_base: float = 5e-4
    """Learning rate at a batch of --lr-base-size images over all devices and accumulated batches."""
    lr_base_size: int = 512
    """See --lr-base."""
    weight_decay: float = 0.05
    """Decay of the matrices. Biases, norms, positions and what a mixer keeps out (A_log, D, steps) do not decay."""
    momentum: float = 0.9
    """For optimisers that have one."""
    layer_decay: float | None = None
    """Factor of the learning rate from one layer to the one before it; None for the same everywhere."""
    layer_decay_min_scale: float = 0.0
    """The least such factor."""
    sched: str = "cosine"
    """Schedule of timm's factory, taken at every update: cosine, tanh, step, multistep, poly, wsd, rsqrt, constant."""
    epochs: int = 300
    """Passes over the training images."""
    warmup_epochs: float = 5.0
    """Passes while the learning rate rises."""
    warmup_lr: float = 1e-6
    """Learning rate at the very start."""
    min_lr: float = 1e-5
    """Learning rate at the end."""
    decay_epochs: float | None = None
    """Passes from step to step, or of the last phase (step, wsd, rsqrt)."""
    decay_milestones: tuple[int, ...] = (90, 180, 270)
    """Epochs where the rate falls (multistep)."""
    decay_rate: float = 0.1
    """Factor of such a fall."""
    clip_grad: float | None = None
    """Largest gradient; None for any."""
    clip_mode: Literal["norm", "value", "agc"] = "norm"
    """Of all gradients together, of each number, or of each unit relative to its weights."""
    grad_accum_steps: int = 1
    """Batches an update."""
    model_ema: bool = False
    """Keep a moving average of the weights; it is what is scored and saved as the result."""
    model_ema_decay: float = 0.9998
    """Share of the average that stays at an update."""
    model_ema_warmup: bool = False
    """Let that share grow from 0, for short runs."""


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Where and in which arithmetic."""

    amp: bool = False
    """Automatic mixed precision."""
    amp_dtype: Literal["float16", "bfloat16"] = "bfloat16"
    """Its small type."""
    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu, gpu."""
    devices: int | Literal["auto"] = 1
    """Devices on each machine."""
    num_nodes: int = 1
    """Machines."""
    strategy: str = "auto"
    """Lightning's strategy: auto, ddp, fsdp."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DeviceOptions, OptimizerOptions, AugmentOptions, DataOptions, ModelOptions):
    """Train an image classifier and score it on the held-out part."""

    val_img_size: int | None = None
    """Side of the images that are scored; None is --img-size."""
    val_interval: int = 1
    """Epochs from one score to the next."""
    steps_per_epoch: int | None = None
    """Batches an epoch; None is every training image once."""
    grad_checkpointing: bool = False
    """Keep fewer activations and compute them again."""
    sync_bn: bool = False
    """Batch norms over all devices."""
    freeze: tuple[str, ...] = ()
    """Parameters that stay as they are, as shell patterns of their names, e.g. patch_embed.*"""
    save_every: int | None = None
    """Also keep a checkpoint every so many batches, for machines that may vanish; None: once an epoch."""
    patience: int | None = None
    """Epochs without a better score before the run ends; None for never."""
    seed: int = 42
    """Seed of the weights, of the order of the images and of their augmentation."""
    output: str = "runs"
    """Folder that gets the run folder."""
    experiment: str = ""
    """Name of the run folder; empty makes one of the data and the model."""
    resume: str | None = None
    """A run folder: read its config.yaml and go on where it stopped; other options given beside it win."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(DeviceOptions, DataOptions, ModelOptions):
    """Score a trained classifier: top-1, top-5, every class. --img-size may differ from the size of its training."""

    results_file: str = ""
    """CSV file for the score of each class; empty for none."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Images a second and memory of models side by side, inference and training, synchronised."""

    models: tuple[str, ...] = ("vim_tiny_patch16_224", "deit_tiny_patch16_224")
    """Names of models of this package or of timm."""
    img_sizes: tuple[int, ...] = (224,)
    """Sides of the images."""
    batch_sizes: tuple[int, ...] = (1, 32, 128)
    """Images a batch."""
    precisions: tuple[Literal["fp32", "tf32", "bf16"], ...] = ("fp32", "tf32", "bf16")
    """float32; with TF32 matrix products (GPU only); bfloat16 autocast."""
    passes: tuple[Literal["infer", "train"], ...] = ("infer", "train")
    """Forward without gradients; forward, loss, backward and optimiser step."""
    channels_last: bool = False
    """Keep images and weights channel-last in memory."""
    torchcompile: bool = False
    """Compile the models."""
    seconds: float = 3.0
    """Time that each case is measured for, after two calls to warm up."""
    device: str = "auto"
    """auto, cpu or cuda."""
    threads: int | None = None
    """CPU threads; None is torch's own choice."""
    output: str = ""
    """CSV file for the rows; empty for none."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Name what images show, with the five likeliest classes, and draw which pixels decided."""

    images: tuple[str, ...] = ()
    """Image files."""
    checkpoint: str = ""
    """Run folder of python -m vision.train, or a .safetensors file from one."""
    model: str = ""
    """Without --checkpoint: a model with published weights (needs the network)."""
    img_size: int | None = None
    """Side of the images, in pixels; None is that of the training."""
    topk: int = 5
    """Classes to print."""
    steps: int = 24
    """Points of the path from a grey image along which the gradient is averaged; more is finer."""
    output: str = "influence.png"
    """Picture to write; empty for none."""
