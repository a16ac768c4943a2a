"""Which device a command runs on, and no chatter of the libraries beside its output."""

from __future__ import annotations

import logging
import os
import warnings
from typing import TYPE_CHECKING

from regionroute.errors import UserError

if TYPE_CHECKING:
    import torch


def pick_device(name: str | None) -> torch.device:
    """The device of that name; None: cuda where there is one, else the processor.

    Raises:
        UserError: it cannot be used here.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    # What an absent accelerator raises depends on how torch was built.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name}: not usable here ({reason}); try cpu") from None
    return device


def quiet_libraries() -> None:
    """Keeps libraries from printing beside the one sentence a user needs."""
    import torch

    if not torch.cuda.is_available():
        # DeepSpeed, imported by diffusers' LoRA code, reports on stderr that it found no GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", category=FutureWarning)
    # It tells, whenever it is installed, of a faster kernel for 4 bits on some processors.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
