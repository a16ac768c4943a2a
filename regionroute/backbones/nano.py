"""The embedded base: a small Kontext pipeline that comes with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from regionroute.errors import UserError

NAME = "nano"


def nano_folder() -> Path:
    """The packaged base, a complete diffusers ``FluxKontextPipeline`` folder.

    Raises:
        UserError: the installation lacks its weights.
    """
    folder = Path(str(resources.files("regionroute.backbones"))) / NAME
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"the embedded base nano has no files at {folder}: reinstall the package, or make it "
            "with `python train/pretrain_nano.py`"
        )
    return folder
