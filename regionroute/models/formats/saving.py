"""Writes a base as a diffusers folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from regionroute.files import make_readable
from regionroute.folders import atomic_folder
from regionroute.models.source import INDEX_FILE, SETTINGS_FILE, read_index, resolve

if TYPE_CHECKING:
    from regionroute.models.backbone import Backbone


def save_base(backbone: Backbone, out: Path) -> None:
    """Write a base's folder again with the transformer as it is now, complete or not at all.

    Args:
        backbone: loaded from files; the other parts are copied from them.
        out: new or empty folder.

    Raises:
        OSError: `out` is not empty.
    """
    from huggingface_hub import hf_hub_download

    source = resolve(backbone.name)
    index = read_index(backbone.name, source, backbone.revision)
    if not isinstance(source, Path):
        source = Path(hf_hub_download(source, INDEX_FILE, revision=backbone.revision)).parent
    with atomic_folder(out, replace=False) as partial:
        partial.mkdir(parents=True)
        for name in (INDEX_FILE, SETTINGS_FILE):
            if (source / name).is_file():
                shutil.copy(source / name, partial / name)
        for part in index:
            if part != "transformer" and (source / part).is_dir():
                shutil.copytree(source / part, partial / part)
        backbone.transformer.save_pretrained(partial / "transformer")
        for path in (partial / "transformer").iterdir():
            make_readable(path)
