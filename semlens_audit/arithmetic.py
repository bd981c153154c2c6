"""One way of computing in every process that runs a network, whatever it computed before: last bits depend on it."""

from __future__ import annotations

__all__ = ["fix_arithmetic"]


def fix_arithmetic() -> None:
    """Switch off what torch would choose between by circumstance; for the whole process, and needed once in each.

    Attention and transformer layers of torch have a shorter way that they take in inference only and never under a hook, and that
    rounds otherwise. On CUDA, TF32 keeps 10 bits of a factor instead of 23, and cuDNN's trial of its kernels lets the quickest one of
    the day decide the last bits.
    """
    import torch

    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
