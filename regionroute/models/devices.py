"""The device a command runs on, and quiet libraries."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

from regionroute.errors import UserError, first_line

if TYPE_CHECKING:
    import torch


def pick_device(name: str | None) -> torch.device:
    """The device of that name; None: cuda if available, else cpu.

    Raises:
        UserError: it cannot be used here.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" holds no numbers
    # The error for an absent accelerator depends on how torch was built.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device {name}: not usable here ({first_line(error)}); try cpu") from None
    return device


def fast_bfloat16() -> bool:
    """False on an x86 CPU without instructions for bfloat16, where float32 is far faster."""
    import torch

    if not hasattr(torch.cpu, "get_capabilities"):  # older versions do not tell
        return True
    found = torch.cpu.get_capabilities()
    x86 = found.get("architecture") == "x86_64"
    return not x86 or bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def quiet_libraries() -> None:
    """Silences warnings and logs of libraries that do not concern the user."""
    import torch

    if not torch.cuda.is_available():
        # DeepSpeed, imported by diffusers' LoRA code, reports on stderr that it found no GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", category=FutureWarning)
