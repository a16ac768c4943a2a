"""Where a run's numbers and images go: TensorBoard, Weights & Biases, Trackio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from regionroute.data.images import to_pil
from regionroute.errors import UserError, first_line
from regionroute.files import read_json, write_json

ID_FILE = "tracker.json"  # by what name a service knows the run, so that it can be continued
SERVICES = ("wandb", "trackio")


class Tracker(Protocol):
    """Takes numbers by name ("loss/flow") and images [3,H,W] in [0,1], each at a step."""

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Records numbers of one step."""

    def picture(self, name: str, image: Tensor, step: int) -> None:
        """Records an image."""

    def close(self) -> None:
        """Writes what is still to be written."""


class TensorBoard:
    """Event files in ``<output>/tb``.

    Args:
        output: the run's folder.
        start: steps done before; later events of an interrupted run are hidden.
    """

    def __init__(self, output: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(output / "tb"), purge_step=start + 1)

    def numbers(self, values: Mapping[str, float], step: int) -> None:  # noqa: D102
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, name: str, image: Tensor, step: int) -> None:  # noqa: D102
        self._writer.add_image(name, image, step)

    def close(self) -> None:  # noqa: D102
        self._writer.close()


class Service:
    """A run at wandb, or at trackio, whose functions have the same names.

    Steps are logged as a metric of their own: a continued run goes back behind what it had logged,
    which wandb's own steps do not allow.

    Args:
        module: wandb or trackio.
        output: the run's folder; its name is the run's.
        start: steps done before; a run from the first step is a new one there too.
        project: to which the run belongs.
        config: the run's settings.
    """

    def __init__(
        self, module: Any, output: Path, start: int, project: str, config: Mapping[str, Any]
    ) -> None:
        self._module, self._wandb = module, module.__name__ == "wandb"
        known = _known(output, module) if start else None
        settings: dict[str, Any] = {"project": project, "config": dict(config)}
        settings["resume"] = "allow" if known else "never"
        if self._wandb:
            settings |= {"name": output.resolve().name, "id": known, "dir": str(output)}
        else:  # which knows a run by its name
            settings["name"] = known or output.resolve().name
        self._run = module.init(**settings)
        if self._wandb:
            self._run.define_metric("*", step_metric="step")
        _remember(output, module, self._run.id if self._wandb else self._run.name)

    def numbers(self, values: Mapping[str, float], step: int) -> None:  # noqa: D102
        self._log(dict(values), step)

    def picture(self, name: str, image: Tensor, step: int) -> None:  # noqa: D102
        self._log({name: self._module.Image(to_pil(image))}, step)

    def _log(self, values: dict[str, Any], step: int) -> None:
        if self._wandb:
            self._run.log(values | {"step": step})
        else:
            self._run.log(values, step=step)

    def close(self) -> None:  # noqa: D102
        self._run.finish()


def _known(output: Path, module: Any) -> str | None:
    path = output / ID_FILE
    ids = read_json(path) if path.is_file() else {}
    known: str | None = ids.get(module.__name__)
    return known


def _remember(output: Path, module: Any, identity: str) -> None:
    path = output / ID_FILE
    ids = read_json(path) if path.is_file() else {}
    write_json(path, ids | {module.__name__: identity})


def check_trackers(names: Sequence[str]) -> None:
    """Imports the services that a run wants, before it starts.

    Raises:
        UserError: one is not installed.
    """
    for name in names:
        if name in SERVICES:
            _service(name)


def open_trackers(
    names: Sequence[str], output: Path, start: int, project: str, config: Mapping[str, Any]
) -> list[Tracker]:
    """The trackers of a run; call it on the process that writes.

    Args:
        names: ``train.trackers``.
        output: the run's folder.
        start: steps done before.
        project: for the services.
        config: the run's settings, JSON-able.

    Raises:
        UserError: a service is not installed or refuses to start (no login, no network).
    """
    opened: list[Tracker] = []
    for name in names:
        if name in SERVICES:
            module = _service(name)
            try:
                opened.append(Service(module, output, start, project, config))
            except Exception as error:  # of any class: no login, no network, a wrong project
                raise UserError(
                    f"train.trackers: {name} did not start ({first_line(error)}): log in, or take "
                    "it out of train.trackers"
                ) from error
        else:
            opened.append(TensorBoard(output, start))
    return opened


def _service(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(
            f"train.trackers: {name} is not installed: pip install 'regionroute[trackers]', or "
            "take it out of train.trackers"
        ) from error
