"""Settings of a resumed run that differ from those it was trained with.

Exported experts state the settings of their training, so a finished run refuses other settings by
name: it would train nothing and state them nevertheless. A run that has steps left applies them
from there on, and its experts state which settings held before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from regionroute.config.aliases import with_current_names
from regionroute.config.io import FILE_NAME, parse_yaml
from regionroute.config.run import RunConfig
from regionroute.errors import UserError

if TYPE_CHECKING:
    from train.engine.checkpoint import TrainerState

# Settings and groups that do not change what is trained. "routing" and the experts' export are
# applied to the exported files themselves, so what these state is true.
HARMLESS = (
    "output",
    "data.cache",
    "data.stream_memory",
    "data.workers",
    "experts.dtype",
    "experts.license",
    "routing",
    "supervision.gradient_norms_every",
    "train.accumulation",
    "train.compile",
    "train.gradient_checkpointing",
    "train.keep",
    "train.keep_best",
    "train.log_every",
    "train.loss_spike",
    "train.offload",
    "train.patience",
    "train.preview_every",
    "train.previews",
    "train.project",
    "train.resume",
    "train.save_every",
    "train.steps",
    "train.trackers",
    "train.validate_every",
    "train.validation_levels",
    "train.validation_samples",
    "train.validation_split",
)
# Names and paths; `checkpoint.check_facts` compares what they refer to.
BY_CONTENT = {
    "base.name": "base_weights",
    "base.revision": "base_weights",
    "data.manifest": "samples",
    "data.split": "samples",
    "data.whole_targets": "samples",
    "experts.styles": "styles",
    "experts.style_encoder": "style_encoder",
    "experts.style_pictures": "references",
}
SHOWN = 4  # changes named in one sentence


@dataclass(frozen=True)
class History:
    """The settings that a run was trained with.

    Attributes:
        settings: of the steps from here on, as JSON values.
        changes: {"until_step": n, "settings": {key: value}} for each change of settings in an
            unfinished run: the values up to that step, oldest first.
    """

    settings: dict[str, Any]
    changes: list[dict[str, Any]] = field(default_factory=list)


def continued(
    config: RunConfig, facts: Mapping[str, Any], state: TrainerState, output: Path
) -> tuple[History, list[str]]:
    """Compares the settings of a resumed run with those of its checkpoint.

    Args:
        config: the settings now.
        facts: of this run, see `train.prepare.run_facts`.
        state: of the checkpoint.
        output: the run's folder; its ``config.yaml`` serves checkpoints of earlier versions.

    Returns:
        What the run's next checkpoint stores, and remarks on changed settings.

    Raises:
        UserError: the run has no steps left and settings differ.
    """
    own = config.model_dump(mode="json")
    if config.train.steps < state.step:
        raise UserError(
            f"train.steps={config.train.steps}: {output} has already been trained for {state.step} "
            "steps, set at least that many or choose another output"
        )
    before = _stored(state, output)
    if before is None:
        return History(own), []
    changes = {key: old for key, old in _flat(before).items() if old != _flat(own).get(key)}
    changes = {key: old for key, old in changes.items() if _matters(key, facts, state)}
    if not changes:
        return History(own, state.changes), []
    now = _flat(own)
    for key in ("experts.init_from", "experts.init_with"):
        if key in changes:
            raise UserError(
                f"{output}: this run started with {key}={changes[key]}, now it is {now[key]}; it "
                "is read at the first step only: set it back, or choose another output"
            )
    named = [f"{key} was {old!r} and is now {now.get(key)!r}" for key, old in changes.items()]
    listed = "; ".join(named[:SHOWN]) + ("; ..." if len(named) > SHOWN else "")
    if config.train.steps == state.step:
        raise UserError(
            f"{output}: this run is finished ({state.step} steps) and was trained with other "
            f"settings ({listed}): set them back, choose another output, or raise train.steps to "
            "train further with the new ones"
        )
    entry = {"until_step": state.step, "settings": changes}
    return History(own, [*state.changes, entry]), [f"from step {state.step + 1} on: {listed}"]


def _stored(state: TrainerState, output: Path) -> dict[str, Any] | None:
    """The settings that the checkpoint was trained with; None where nobody wrote them down."""
    values, where = state.settings, "trainer.json"
    if values is None:
        path = output / FILE_NAME
        if not path.is_file():
            return None
        values, where = parse_yaml(path.read_text(encoding="utf-8-sig"), str(path)), str(path)
    if not isinstance(values, dict):
        return None
    try:
        # Settings that are newer than the checkpoint get their defaults.
        config = RunConfig.model_validate(with_current_names(values, RunConfig, where, quiet=True))
    except ValidationError:
        return None  # by another version, whose settings cannot be compared
    return config.model_dump(mode="json")


def _matters(key: str, facts: Mapping[str, Any], state: TrainerState) -> bool:
    """Whether a changed setting changes what is trained."""
    if any(key == name or key.startswith(f"{name}.") for name in HARMLESS):
        return False
    if key in BY_CONTENT:
        fact = BY_CONTENT[key]
        return fact is not None and state.facts.get(fact) != facts[fact]
    return True


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
