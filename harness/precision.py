"""What float32 means here: products and convolutions of float32 numbers, not of their first ten bits.

torch leaves TF32 off for matrix products and on for cuDNN's convolutions, the patch embedding of an encoder and the Gaussian of
the scoring among them: on a GPU since Ampere both could be off by 5e-4, and so could a metric from that of a CPU. The originals'
scripts leave it on. Speed comes from bfloat16 where a method asks for it by name.
"""

from __future__ import annotations


def keep_float32() -> None:
    """Switch TF32 off for the whole process, convolutions included."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False  # by torch's older names: reading one after setting a newer one raises
    torch.backends.cudnn.allow_tf32 = False
