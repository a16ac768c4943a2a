"""What a run's DeepSpeed file says, for training and for planning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from regionroute.errors import UserError
from regionroute.files import parse_json

if TYPE_CHECKING:
    from regionroute.config.run import RunConfig

GPU_BUCKET = 500_000_000  # values reduced at a time; DeepSpeed's default, which it allocates whole
# DeepSpeed keys that our own configuration decides, and the key to set instead.
OURS = {
    "train_batch_size": "train.global_batch",
    "train_micro_batch_size_per_gpu": "train.global_batch and train.accumulation",
    "gradient_accumulation_steps": "train.accumulation",
    "gradient_clipping": "optim.clip",
    "optimizer": "the keys of optim",
    "scheduler": "optim.schedule and optim.warmup",
    "fp16": "base.dtype",
    "bf16": "base.dtype",
    "bfloat16": "base.dtype",
    "torch_autocast": "base.dtype",
    "amp": "base.dtype",
}
SECTIONS = ("offload_param", "offload_optimizer")
DEVICES = ("none", "cpu", "nvme")  # of an offload section
LIVE = "stage3_max_live_parameters"  # values ZeRO-3 keeps gathered


def zero_stage(config: RunConfig) -> int:
    """The ZeRO stage in use: the DeepSpeed file's, if it names one, else train.zero_stage.

    Raises:
        UserError: see `read_deepspeed_file`.
    """
    stage: int = zero_section(config).get("stage", config.train.zero_stage)
    return stage


def zero_section(config: RunConfig) -> dict[str, Any]:
    """``zero_optimization`` of the run's DeepSpeed file; empty if there is none.

    Raises:
        UserError: see `read_deepspeed_file`.
    """
    path = config.train.deepspeed
    section: dict[str, Any] = read_deepspeed_file(path).get("zero_optimization", {}) if path else {}
    return section


def read_deepspeed_file(path: str) -> dict[str, Any]:
    """A DeepSpeed JSON file without the keys that say "auto", in all its sections.

    Raises:
        UserError: missing, not a JSON object, or it sets what the run's configuration decides,
            or a wrong value of those read here.
    """
    where = f"train.deepspeed: {path}"
    if not Path(path).is_file():
        raise UserError(f"{where}: no such file, give a DeepSpeed JSON file")
    values = parse_json(Path(path).read_bytes(), where)
    if not isinstance(values, dict):
        raise UserError(f"{where}: must hold a JSON object")
    values = _without_auto(values)
    for key in values:
        if key in OURS:
            raise UserError(f"{where}: remove {key!r} and set {OURS[key]} instead")
    steps = values.get("steps_per_print")
    if steps is not None and (type(steps) is not int or steps < 1):
        raise UserError(f"{where}: steps_per_print must be a whole number from 1, not {steps!r}")
    _check_zero(where, values.get("zero_optimization", {}))
    return values


def _check_zero(where: str, zero: Any) -> None:
    if not isinstance(zero, dict):
        raise UserError(f"{where}: zero_optimization must be a JSON object")
    if type(zero.get("stage", 0)) is not int or zero.get("stage", 0) not in range(4):
        raise UserError(
            f"{where}: zero_optimization.stage must be 0, 1, 2 or 3, not {zero['stage']!r}"
        )
    for key in SECTIONS:
        if not isinstance(zero.get(key), dict | None):
            raise UserError(f"{where}: zero_optimization.{key} must be a JSON object")
        device = (zero.get(key) or {}).get("device", "none")
        if device not in DEVICES:
            raise UserError(
                f"{where}: zero_optimization.{key}.device must be one of {', '.join(DEVICES)}, "
                f"not {device!r}"
            )
    live = zero.get(LIVE, 1)
    whole = type(live) is int or (isinstance(live, float) and live.is_integer())  # such as 1e9
    if not whole or live < 0:
        raise UserError(f"{where}: zero_optimization.{LIVE} must be a whole number, not {live!r}")


def _without_auto(values: dict[str, Any]) -> dict[str, Any]:
    """Without what another trainer would fill in."""
    return {
        key: _without_auto(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value != "auto"
    }
