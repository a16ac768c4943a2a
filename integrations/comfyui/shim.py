"""The few parts of ComfyUI's `comfy_api.latest` that the nodes use, for a Python without ComfyUI.

With them the pack imports and its nodes execute in tests and in `make_workflows.py`. Nothing is
validated and nothing is cached: that is ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Socket:
    """An input or an output of a node.

    Attributes:
        io_type: name of the type, such as "IMAGE".
        id: name of the input or output.
        settings: everything else, such as default, min, max, optional, tooltip.
    """

    io_type: str
    id: str | None
    settings: dict[str, Any]


class SocketType:
    """A type of ComfyUI; `Input` and `Output` make sockets of it."""

    def __init__(self, io_type: str) -> None:
        self.io_type = io_type

    def Input(self, id: str, **settings: Any) -> Socket:
        """An input of this type."""
        return Socket(self.io_type, id, settings)

    def Output(self, id: str | None = None, **settings: Any) -> Socket:
        """An output of this type."""
        return Socket(self.io_type, id, settings)


@dataclass
class Schema:
    """Definition of a node."""

    node_id: str
    display_name: str = ""
    category: str = ""
    description: str = ""
    inputs: Sequence[Socket] = ()
    outputs: Sequence[Socket] = ()
    search_aliases: list[str] = field(default_factory=list)


class ComfyNode:
    """Base class of nodes."""

    @classmethod
    def define_schema(cls) -> Schema:
        """The node's definition; nodes override it."""
        raise NotImplementedError

    @classmethod
    def GET_SCHEMA(cls) -> Schema:
        """As ComfyUI asks for it."""
        return cls.define_schema()


class NodeOutput:
    """What `execute` returns: one value for each output."""

    def __init__(self, *args: Any) -> None:
        self.args = args


class ComfyExtension:
    """Base class of node packs."""

    async def on_load(self) -> None:
        """Called once, when ComfyUI loads the pack."""


class io:
    """`comfy_api.latest.io`."""

    Schema, ComfyNode, NodeOutput, Custom = Schema, ComfyNode, NodeOutput, SocketType
    Image, Mask, Model = SocketType("IMAGE"), SocketType("MASK"), SocketType("MODEL")
    String, Int, Float = SocketType("STRING"), SocketType("INT"), SocketType("FLOAT")
    Boolean, Combo = SocketType("BOOLEAN"), SocketType("COMBO")
