"""Peak throughput and memory of common accelerators, from their data sheets."""

from __future__ import annotations

import re
from typing import NamedTuple

from regionroute.errors import UserError, nearest


class Chip(NamedTuple):
    """An accelerator.

    Attributes:
        name: full name.
        teraflops: peak of dense bfloat16 with float32 accumulation, 10^12 operations per second.
        memory: nominal GiB.
        pattern: regular expression for the name that the driver reports.
    """

    name: str
    teraflops: float
    memory: float
    pattern: str


CHIPS = {
    "b200": Chip("NVIDIA B200", 2250, 180, r"B200"),
    "h200": Chip("NVIDIA H200 SXM", 989, 141, r"H200"),
    "h100": Chip("NVIDIA H100 SXM", 989, 80, r"H100(?!.*PCIe)"),
    "h100-pcie": Chip("NVIDIA H100 PCIe", 756, 80, r"H100.*PCIe"),
    "mi300x": Chip("AMD MI300X", 1307, 192, r"MI300X"),
    "a100": Chip("NVIDIA A100 80 GB", 312, 80, r"A100.*80GB"),
    "a100-40": Chip("NVIDIA A100 40 GB", 312, 40, r"A100(?!.*80GB)"),
    "l40s": Chip("NVIDIA L40S", 362, 48, r"L40S"),
    "rtx6000ada": Chip("NVIDIA RTX 6000 Ada", 364, 48, r"RTX 6000 Ada"),
    "a6000": Chip("NVIDIA RTX A6000", 155, 48, r"RTX A6000"),
    "5090": Chip("NVIDIA GeForce RTX 5090", 209.5, 32, r"RTX 5090(?! )"),
    "4090": Chip("NVIDIA GeForce RTX 4090", 165, 24, r"RTX 4090(?! )"),
    "3090": Chip("NVIDIA GeForce RTX 3090", 71, 24, r"RTX 3090(?! )"),
    "l4": Chip("NVIDIA L4", 121, 24, r"L4(?!\w)"),
}


def chip(name: str) -> Chip:
    """The chip of a short name.

    Raises:
        UserError: it is not in the table; the message names the nearest.
    """
    if name.lower() not in CHIPS:
        raise UserError(
            f"--chip {name}: not in the table ({', '.join(CHIPS)}); did you mean "
            f"{nearest(name, CHIPS)}? For another, name one of equal speed and set --gpu-memory"
        )
    return CHIPS[name.lower()]


def chip_of(device: str) -> Chip | None:
    """The chip of a driver's name ("NVIDIA A100-SXM4-80GB"), None if it is not in the table."""
    return next((chip for chip in CHIPS.values() if re.search(chip.pattern, device)), None)
