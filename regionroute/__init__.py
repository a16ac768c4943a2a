"""RegionRoute: restyle a named object in an image and keep the rest.

The names below are imported when they are first used, so that `import regionroute` is quick and
needs neither torch nor diffusers.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import version

    from regionroute.data.manifest import load_manifest
    from regionroute.pipeline import EditOutput, RegionRoutePipeline

    __version__ = version("regionroute")

__all__ = ["EditOutput", "RegionRoutePipeline", "__version__", "load_manifest"]

# bitsandbytes, which diffusers imports where it is installed, advertises a package of its own on
# stderr; it would be the first line of many commands.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "gemm_4bit_forward" not in record.getMessage()
)

_MODULES = {
    "EditOutput": "regionroute.pipeline",
    "RegionRoutePipeline": "regionroute.pipeline",
    "load_manifest": "regionroute.data.manifest",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("regionroute")
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'regionroute' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
