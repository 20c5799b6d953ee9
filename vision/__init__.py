"""Vision: state-space image models in timm's dress.

Here will live Vim, VMamba, PlainMamba, LocalMamba, MambaVision, SiMBA and S4ND as timm models (`vision.models` registers
them), loaders for the checkpoints that their authors published, and the ImageNet trainer `python -m vision.train`.
Nothing of it exists yet; every token order and mixer that it needs is in `ssmcore`.
"""
