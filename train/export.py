"""What is written with the experts of a run: all that `edit` and their model card have to know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regionroute.adapters import save_experts
from regionroute.adapters.files.export import expert_names
from regionroute.adapters.files.precision import FILE_DTYPES
from regionroute.config.sites import MAP_KEY
from regionroute.data.manifest import manifest_file
from train.step import StepLosses

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from regionroute.config.run import RunConfig
    from train.inputs import Inputs
    from train.monitor.logs import Reporter

ROUTER = ("entropy", "overlap_within", "overlap_between")
LOSSES = (*StepLosses.NAMES, *ROUTER)  # numbers of the log that the card shows


def experts_writer(
    config: RunConfig,
    inputs: Inputs,
    num_experts: int,
    engine: DeepSpeedEngine,
    reporter: Reporter,
    changes: list[dict[str, Any]],
) -> Callable[[Path], object]:
    """A function that writes experts with all that `edit` and their model card need.

    `edit` needs the sizes, and where and how the maps are read; the card states the settings. If
    they changed during the run, "config" holds the last ones and "changed_settings" the earlier
    values.
    """
    extra: dict[str, Any] = {
        "max_text_length": inputs.backbone.settings.max_text_length,
        "resolution": inputs.backbone.settings.resolution,
        "map_layers": config.supervision.layers,
        "map_queries": config.supervision.queries,
        "map_norm": config.supervision.norm,
        "routing": config.routing.model_dump(mode="json"),
        "manifest": manifest_file(config.data.manifest).name,
        "data": {"split": config.data.split, "samples": len(inputs.selection.samples)},
        "license": config.experts.license,
        "averaged": config.optim.ema or None,
        "config": config.model_dump(mode="json"),
    }
    choice = config.map.choice()
    if choice is not None:
        extra[MAP_KEY] = choice.settings()
    if changes:
        extra["changed_settings"] = changes

    references = inputs.references
    styles = inputs.selection.styles
    if references:
        extra["styles"] = [style.name for style in styles]
        styles = expert_names(num_experts)

    def write(folder: Path) -> object:
        if references:  # before the registry, which says that all is there
            references.save(folder)
        scores = {name: x for name, x in reporter.latest.items() if name in LOSSES}
        return save_experts(
            folder,
            engine.module,
            styles,
            base_name=inputs.backbone.name,
            base_fingerprint=inputs.backbone.fingerprint,
            dtype=FILE_DTYPES[config.experts.dtype],
            extra=extra | {"steps": engine.global_steps, "losses": scores},
        )

    return write
