"""Write the example workflows: JSON for the browser and for the API, and images that carry both.

    python integrations/comfyui/make_workflows.py [NAME ...]

ComfyUI is not needed: the graphs are run here, node by node, through the pack's own `execute`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

PACK = Path(__file__).resolve().parent
EXAMPLES = PACK / "example_workflows"
NAME = "regionroute_comfyui"  # of the pack's module


def load_pack() -> ModuleType:
    """The pack, loaded as ComfyUI loads a folder of ``custom_nodes``."""
    if NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(NAME, PACK / "__init__.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[NAME] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[NAME])
    return sys.modules[NAME]


def run(graph: dict[str, Any]) -> Image.Image:
    """Run a graph without ComfyUI: the pack's nodes, and those of ComfyUI that load and save.

    Returns:
        The image that SaveImage gets.
    """
    core: dict[str, Callable[..., tuple[Any, ...]]] = {
        "LoadImage": lambda image: (_pixels(image), torch.zeros(1, 64, 64)),
        "LoadImageMask": lambda image, channel: (_pixels(image)[..., "rgb".index(channel[0])],),
    }
    nodes = _workflows().pack_nodes()
    results: dict[str, tuple[Any, ...]] = {}
    saved = None
    for number, node in graph.items():
        inputs = {
            name: results[value[0]][value[1]] if isinstance(value, list) else value
            for name, value in node["inputs"].items()
        }
        if node["class_type"] == "SaveImage":
            saved = inputs["images"]
        elif node["class_type"] in core:
            results[number] = core[node["class_type"]](**inputs)
        elif node["class_type"] in nodes:
            results[number] = nodes[node["class_type"]].execute(**inputs).args
        else:
            results[number] = (None,)  # a preview
    assert saved is not None
    return Image.fromarray((saved[0].numpy() * 255).round().astype(np.uint8))


def _pixels(name: str) -> Tensor:
    with Image.open(EXAMPLES / "inputs" / name) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).float()[None] / 255


def _workflows() -> Any:
    load_pack()
    return importlib.import_module(f"{NAME}.workflows")


def main(names: list[str]) -> None:
    """Write the JSON of all examples, and the images of some, by default of all that run here."""
    workflows = _workflows()
    for name, graph in workflows.graphs().items():
        browser = workflows.for_browser(graph)
        for file, content in ((f"{name}.json", browser), (f"api/{name}.json", graph)):
            (EXAMPLES / file).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if name == "expert_lora" or (names and name not in names):
            continue  # the first needs the weights of FLUX
        image, texts = run(graph), PngImagePlugin.PngInfo()
        texts.add_text("prompt", json.dumps(graph))
        texts.add_text("workflow", json.dumps(browser))
        image.save(EXAMPLES / f"{name}.png", pnginfo=texts, optimize=True)
        image.save(EXAMPLES / f"{name}.jpg", quality=90)  # the template browser's thumbnail
        print(EXAMPLES / f"{name}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
