"""Imports the libraries of an edit, and of the optional packages they import only those needed.

diffusers and transformers import whatever they could use that is installed, which takes longer than
an edit. Only `regionroute edit` and `regionroute serve`, whose needs are known, come here.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator

from regionroute.models.devices import quiet_libraries

LIBRARIES, PIPELINE = "regionroute.models.loading", "regionroute.pipeline"
# For LoRA training, other noise schedules, image processors, kernels. (nf4 imports its own later.)
UNUSED = ("bitsandbytes", "peft", "scipy", "torchvision", "triton")


def import_pipeline() -> None:
    """Imports `regionroute.pipeline` quietly and quickly; does nothing the second time."""
    if PIPELINE in sys.modules:
        return
    usual = gc.get_threshold()
    gc.set_threshold(100_000)  # imports leave next to no garbage
    try:
        quiet_libraries()
        with hidden(*UNUSED):
            importlib.import_module(LIBRARIES)
        importlib.import_module(PIPELINE)
    finally:
        gc.set_threshold(*usual)
    atexit.register(_skip_last_collections)


@contextlib.contextmanager
def hidden(*packages: str) -> Iterator[None]:
    """Makes packages look as if they were not installed; those imported already stay as they are.

    None in `sys.modules` is Python's own mark for that: an import raises ModuleNotFoundError, and
    `importlib.util.find_spec`, which both libraries ask, returns None. They remember the answer.
    """
    absent = dict.fromkeys(name for name in packages if name not in sys.modules)
    sys.modules.update(absent)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def _skip_last_collections() -> None:
    """Python's searches for garbage at exit take a second; the system frees the memory anyway."""
    if "triton" not in sys.modules:  # its binding reports on stderr what was not freed
        gc.freeze()
