"""The embedded bases: small Kontext pipelines that come with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from regionroute.errors import UserError

SCENES = "nano"  # 64 px, drawn scenes, for studies and tests
PHOTOS = "nano-photos"  # 128 px, photos
NAMES = (SCENES, PHOTOS)
USUAL = PHOTOS  # where none is named


def nano_folder(name: str = SCENES) -> Path:
    """A packaged base, a complete diffusers ``FluxKontextPipeline`` folder.

    Args:
        name: one of `NAMES`.

    Raises:
        UserError: the installation lacks its weights.
    """
    folder = Path(str(resources.files("regionroute.models"))) / name.replace("-", "_")
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"the embedded base {name} has no files at {folder}: reinstall the package, or make "
            "it with `python train/pretrain/run.py`"
        )
    return folder
