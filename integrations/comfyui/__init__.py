"""RegionRoute for ComfyUI: restyle the object you name, keep the rest of the image.

Put this folder into ComfyUI's ``custom_nodes``, or a link to it, and install the library
``regionroute`` into ComfyUI's Python; see docs/howto/comfyui.md.
"""

from __future__ import annotations

from .api import ComfyExtension, io
from .nodes_edit import Edit, EditByImage, EditMask
from .nodes_load import Load
from .nodes_model import ExpertLoRA
from .nodes_score import Score

__all__ = ["NODES", "RegionRouteExtension", "comfy_entrypoint"]

NODES: list[type[io.ComfyNode]] = [Load, Edit, EditByImage, EditMask, ExpertLoRA, Score]


class RegionRouteExtension(ComfyExtension):
    """The node pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes of the pack."""
        return [*NODES]


async def comfy_entrypoint() -> RegionRouteExtension:
    """Called by ComfyUI when it loads the pack."""
    return RegionRouteExtension()
