"""PEFT's settings of a LoRA file, checked: they come from a header or a JSON file of strangers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regionroute.adapters.files.lora_file import PREFIX
from regionroute.adapters.files.patterns import first_match
from regionroute.errors import UserError
from regionroute.files import read_json

PEFT_WEIGHT_NAME = "adapter_model.safetensors"
PEFT_CONFIG_NAME = "adapter_config.json"


@dataclass(frozen=True)
class LoraSettings:
    """What decides the scale of a LoRA's layers.

    Attributes:
        alpha: scale numerator, None: the rank, so that the scale is 1.
        alpha_pattern: other numerators, by patterns for module names.
        rslora: divide by the root of the rank.
    """

    alpha: float | None = None
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False

    def scale(self, module: str, rank: int, alpha: float | None) -> float:
        """alpha/r as PEFT takes it.

        Args:
            module: name of the layer.
            rank: r.
            alpha: of the layer's own tensor, None if it has none.

        Raises:
            UserError: a pattern that cannot be used.
        """
        if alpha is None:
            key = first_match(self.alpha_pattern, module)
            alpha = self.alpha if key is None else self.alpha_pattern[key]
        if alpha is None:
            alpha = float(rank)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def read_settings(file: Path, metadata: Mapping[str, Any]) -> LoraSettings:
    """The settings from a LoRA file's header, or from the JSON file that PEFT writes beside it.

    Raises:
        UserError: they are not of PEFT's form.
    """
    source, values = file, {key.removeprefix(PREFIX): value for key, value in metadata.items()}
    beside = file.with_name(PEFT_CONFIG_NAME)
    if not values and file.name == PEFT_WEIGHT_NAME and beside.exists():
        source, found = beside, read_json(beside)
        if not isinstance(found, dict):
            raise UserError(f"{beside}: this must be a JSON object {{...}}, as PEFT writes it")
        values = found
    try:
        return _settings(values)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def _settings(values: Mapping[str, Any]) -> LoraSettings:
    alpha, patterns = values.get("lora_alpha"), values.get("alpha_pattern")
    rslora = values.get("use_rslora")
    if patterns is not None and not isinstance(patterns, dict):
        raise UserError("alpha_pattern must be an object of numbers by module name")
    if rslora is not None and not isinstance(rslora, bool):
        raise UserError(f"use_rslora must be true or false, not {str(rslora)[:60]}")
    if values.get("use_dora") is True:
        raise UserError("this is a DoRA, whose magnitudes a plain LoRA cannot hold")
    return LoraSettings(
        None if alpha is None else number(alpha, "lora_alpha"),
        {
            key: number(value, f"alpha_pattern of {key[:60]!r}")
            for key, value in (patterns or {}).items()
        },
        bool(rslora),
    )


def number(value: Any, name: str) -> float:
    """A finite number.

    Raises:
        UserError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{name} must be a number, not {str(value)[:60]!r}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise UserError(f"{name} must be a finite number, not {str(value)[:60]}")
    return found
