"""The example workflows, in the forms of ComfyUI's API and of its browser.

`make_workflows.py` writes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WIDGETS = {"STRING", "INT", "FLOAT", "BOOLEAN", "COMBO"}  # types that have a widget, not a socket
COLUMN, ROW, WIDTH = 420, 360, 340  # pixels of the browser's canvas

Graph = dict[str, dict[str, Any]]  # of ComfyUI's API: node id -> class_type and inputs


@dataclass(frozen=True)
class NodeType:
    """Inputs of a node with their types, in order, and the types of its outputs."""

    inputs: dict[str, str]
    outputs: list[str]


CORE = {  # ComfyUI's own nodes that the examples use
    "CLIPTextEncode": NodeType({"text": "STRING", "clip": "CLIP"}, ["CONDITIONING"]),
    "ConditioningZeroOut": NodeType({"conditioning": "CONDITIONING"}, ["CONDITIONING"]),
    "DualCLIPLoader": NodeType(
        dict.fromkeys(("clip_name1", "clip_name2", "type", "device"), "COMBO"), ["CLIP"]
    ),
    "FluxGuidance": NodeType(
        {"conditioning": "CONDITIONING", "guidance": "FLOAT"}, ["CONDITIONING"]
    ),
    "FluxKontextImageScale": NodeType({"image": "IMAGE"}, ["IMAGE"]),
    "ImageCompositeMasked": NodeType(
        {"destination": "IMAGE", "source": "IMAGE", "x": "INT", "y": "INT",
         "resize_source": "BOOLEAN", "mask": "MASK"},
        ["IMAGE"],
    ),
    "KSampler": NodeType(
        {"model": "MODEL", "seed": "INT", "steps": "INT", "cfg": "FLOAT", "sampler_name": "COMBO",
         "scheduler": "COMBO", "positive": "CONDITIONING", "negative": "CONDITIONING",
         "latent_image": "LATENT", "denoise": "FLOAT"},
        ["LATENT"],
    ),
    "LoadImage": NodeType({"image": "COMBO"}, ["IMAGE", "MASK"]),
    "LoadImageMask": NodeType({"image": "COMBO", "channel": "COMBO"}, ["MASK"]),
    "MaskToImage": NodeType({"mask": "MASK"}, ["IMAGE"]),
    "PreviewAny": NodeType({"source": "*"}, ["STRING"]),
    "PreviewImage": NodeType({"images": "IMAGE"}, []),
    "ReferenceLatent": NodeType(
        {"conditioning": "CONDITIONING", "latent": "LATENT"}, ["CONDITIONING"]
    ),
    "SaveImage": NodeType({"images": "IMAGE", "filename_prefix": "STRING"}, []),
    "UNETLoader": NodeType({"unet_name": "COMBO", "weight_dtype": "COMBO"}, ["MODEL"]),
    "VAEDecode": NodeType({"samples": "LATENT", "vae": "VAE"}, ["IMAGE"]),
    "VAEEncode": NodeType({"pixels": "IMAGE", "vae": "VAE"}, ["LATENT"]),
    "VAELoader": NodeType({"vae_name": "COMBO"}, ["VAE"]),
}  # fmt: skip
UPLOADS = {"LoadImage", "LoadImageMask"}  # their widgets end with an upload button


def graphs() -> dict[str, Graph]:
    """The examples by name."""
    load = {"base": "nano-photos", "experts": "auto", "dtype": "float32", "quantize": "none"}
    return {
        "edit": _graph(
            photo=("LoadImage", {"image": "coffee.jpg"}),
            load=("RegionRouteLoad", load),
            edit=(
                "RegionRouteEdit",
                {"pipeline": ("load", 0), "image": ("photo", 0), "edits": "cup: starry-night"},
            ),
            save=("SaveImage", {"images": ("edit", 0), "filename_prefix": "regionroute"}),
            region=("MaskToImage", {"mask": ("edit", 1)}),
            show=("PreviewImage", {"images": ("region", 0)}),
        ),
        "edit_mask": _graph(
            photo=("LoadImage", {"image": "coffee.jpg"}),
            mask=("LoadImageMask", {"image": "saucer.png", "channel": "red"}),
            load=("RegionRouteLoad", load),
            edit=(
                "RegionRouteEditMask",
                {"pipeline": ("load", 0), "image": ("photo", 0), "mask": ("mask", 0),
                 "object": "saucer", "style": "woodcut"},
            ),
            save=("SaveImage", {"images": ("edit", 0), "filename_prefix": "regionroute"}),
            score=(
                "RegionRouteScore",
                {"source": ("photo", 0), "edited": ("edit", 0), "mask": ("mask", 0)},
            ),
            show=("PreviewAny", {"source": ("score", 0)}),
        ),
        "edit_by_image": _graph(
            scene=("LoadImage", {"image": "scene.png"}),
            style=("LoadImage", {"image": "style.png"}),
            load=("RegionRouteLoad", {**load, "base": "nano", "experts": "by_example"}),
            edit=(
                "RegionRouteEditByImage",
                {"pipeline": ("load", 0), "image": ("scene", 0), "style_image": ("style", 0),
                 "objects": "apple"},
            ),
            save=("SaveImage", {"images": ("edit", 0), "filename_prefix": "regionroute"}),
        ),
        "expert_lora": _flux(load),
    }  # fmt: skip


def _flux(load: dict[str, Any]) -> Graph:
    """ComfyUI's FLUX.1-Kontext with an expert, its edit put into the region."""
    clips = {"clip_name1": "clip_l.safetensors", "clip_name2": "t5xxl_fp8_e4m3fn.safetensors"}
    return _graph(
        photo=("LoadImage", {"image": "coffee.jpg"}),
        scaled=("FluxKontextImageScale", {"image": ("photo", 0)}),
        flux=(
            "UNETLoader",
            {"unet_name": "flux1-dev-kontext_fp8_scaled.safetensors", "weight_dtype": "default"},
        ),
        load=("RegionRouteLoad", load),
        expert=(
            "RegionRouteExpertLoRA",
            {"model": ("flux", 0), "pipeline": ("load", 0), "image": ("scaled", 0),
             "object": "cup", "style": "pixel-art", "experts": "runs/kontext/experts"},
        ),
        clip=("DualCLIPLoader", {**clips, "type": "flux", "device": "default"}),
        words=("CLIPTextEncode", {"text": ("expert", 2), "clip": ("clip", 0)}),
        vae=("VAELoader", {"vae_name": "ae.safetensors"}),
        latent=("VAEEncode", {"pixels": ("scaled", 0), "vae": ("vae", 0)}),
        source=("ReferenceLatent", {"conditioning": ("words", 0), "latent": ("latent", 0)}),
        guidance=("FluxGuidance", {"conditioning": ("source", 0), "guidance": 2.5}),
        empty=("ConditioningZeroOut", {"conditioning": ("words", 0)}),
        sampler=(
            "KSampler",
            {"model": ("expert", 0), "seed": 0, "steps": 20, "cfg": 1.0, "sampler_name": "euler",
             "scheduler": "simple", "positive": ("guidance", 0), "negative": ("empty", 0),
             "latent_image": ("latent", 0), "denoise": 1.0},
        ),
        decoded=("VAEDecode", {"samples": ("sampler", 0), "vae": ("vae", 0)}),
        composite=(
            "ImageCompositeMasked",
            {"destination": ("scaled", 0), "source": ("decoded", 0), "x": 0, "y": 0,
             "resize_source": True, "mask": ("expert", 1)},
        ),
        save=("SaveImage", {"images": ("composite", 0), "filename_prefix": "regionroute"}),
    )  # fmt: skip


def _graph(**nodes: tuple[str, dict[str, Any]]) -> Graph:
    """A graph from named nodes, a tuple (name, slot) being a link.

    The inputs of the pack's nodes that are not given have their defaults.
    """
    numbers = {name: str(number) for number, name in enumerate(nodes, 1)}
    graph = {}
    for name, (class_type, given) in nodes.items():
        values = _defaults(class_type) | given
        inputs = {
            key: [numbers[value[0]], value[1]] if isinstance(value, tuple) else value
            for key, value in values.items()
        }
        title = {"title": name.replace("_", " ")}
        graph[numbers[name]] = {"class_type": class_type, "inputs": inputs, "_meta": title}
    return graph


def pack_nodes() -> dict[str, Any]:
    """The pack's node classes by node id."""
    from . import NODES

    return {node.GET_SCHEMA().node_id: node for node in NODES}


def _defaults(class_type: str) -> dict[str, Any]:
    if class_type in CORE:
        return {}
    schema = pack_nodes()[class_type].GET_SCHEMA()
    return {one.id: _setting(one, "default") for one in schema.inputs if _io(one) in WIDGETS}


def node_type(class_type: str) -> NodeType:
    """Inputs and outputs of a node of ComfyUI or of the pack."""
    if class_type in CORE:
        return CORE[class_type]
    schema = pack_nodes()[class_type].GET_SCHEMA()
    return NodeType(
        {one.id: _io(one) for one in schema.inputs}, [_io(one) for one in schema.outputs]
    )


def _io(socket: Any) -> str:
    """Name of a socket's type, of ComfyUI's class or of the shim's."""
    found: str = socket.get_io_type() if hasattr(socket, "get_io_type") else socket.io_type
    return found


def _setting(socket: Any, name: str) -> Any:
    return socket.settings.get(name) if hasattr(socket, "settings") else getattr(socket, name, None)


def for_browser(graph: Graph) -> dict[str, Any]:
    """A graph in the form that the browser saves and loads."""
    links, outgoing = _links(graph)
    incoming = {(link[3], link[4]): link[0] for link in links}
    nodes = []
    for order, (number, node) in enumerate(graph.items()):
        kind, depth = node_type(node["class_type"]), _depth(graph, number)
        linked = [name for name, value in node["inputs"].items() if isinstance(value, list)]
        sockets = [name for name, io in kind.inputs.items() if io not in WIDGETS or name in linked]
        before = [other for other in list(graph)[:order] if _depth(graph, other) == depth]
        nodes.append(
            {
                "id": int(number),
                "type": node["class_type"],
                "title": node["_meta"]["title"],
                "pos": [40 + COLUMN * depth, 40 + ROW * len(before)],
                "size": [WIDTH, 60 + 30 * len(kind.inputs)],
                "flags": {},
                "order": order,
                "mode": 0,
                "inputs": [
                    {
                        "name": name,
                        "type": kind.inputs[name],
                        "link": incoming.get((int(number), slot)),
                    }
                    | ({"widget": {"name": name}} if kind.inputs[name] in WIDGETS else {})
                    for slot, name in enumerate(sockets)
                ],
                "outputs": [
                    {"name": io, "type": io, "links": outgoing.get((int(number), slot), [])}
                    for slot, io in enumerate(kind.outputs)
                ],
                "properties": {"Node name for S&R": node["class_type"]},
                "widgets_values": _widgets(node, kind),
            }
        )
    return {
        "last_node_id": len(graph),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _links(graph: Graph) -> tuple[list[list[Any]], dict[tuple[int, int], list[int]]]:
    """Links [id, from, slot, to, slot, type], and their ids by the output they leave."""
    links: list[list[Any]] = []
    outgoing: dict[tuple[int, int], list[int]] = {}
    for number, node in graph.items():
        kind = node_type(node["class_type"])
        linked = [name for name, value in node["inputs"].items() if isinstance(value, list)]
        sockets = [name for name, io in kind.inputs.items() if io not in WIDGETS or name in linked]
        for slot, name in enumerate(sockets):
            if name not in linked:
                continue
            other, output = node["inputs"][name]
            io = node_type(graph[other]["class_type"]).outputs[output]
            links.append([len(links) + 1, int(other), output, int(number), slot, io])
            outgoing.setdefault((int(other), output), []).append(len(links))
    return links, outgoing


def _widgets(node: dict[str, Any], kind: NodeType) -> list[Any]:
    """Values of the widgets in order, with those that the browser adds by itself."""
    values: list[Any] = []
    for name, io in kind.inputs.items():
        if io not in WIDGETS:
            continue
        value = node["inputs"].get(name)
        values.append("" if isinstance(value, list) else value)
        if name == "seed":
            values.append("fixed")  # what happens to it after a run
    return [*values, "image"] if node["class_type"] in UPLOADS else values


def _depth(graph: Graph, number: str) -> int:
    others = [value[0] for value in graph[number]["inputs"].values() if isinstance(value, list)]
    return 1 + max((_depth(graph, other) for other in others), default=-1)
