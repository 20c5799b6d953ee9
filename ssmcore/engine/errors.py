"""How a training run ends early. Imports nothing heavy, so that a command can catch these without Lightning."""

import signal


class Interrupted(Exception):
    """The run was asked to stop and has saved its state; `signum` says by which signal."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}; the state is saved")
        self.signum = signum


class NonFiniteError(ArithmeticError):
    """Training met NaN or infinity; the text names the first bad tensor. The last good checkpoint is kept."""
