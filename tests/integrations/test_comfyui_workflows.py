"""The example workflows: as the script writes them, of nodes and links that exist."""

import json
import tomllib

import pytest
from PIL import Image

NAMES = ["edit", "edit_mask", "edit_by_image", "expert_lora"]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_the_files_are_those_of_the_script(script, workflows, name):
    graph = workflows.graphs()[name]
    assert read(script.EXAMPLES / "api" / f"{name}.json") == graph
    assert read(script.EXAMPLES / f"{name}.json") == workflows.for_browser(graph)
    for node in graph.values():
        if node["class_type"] in workflows.UPLOADS:
            assert (script.EXAMPLES / "inputs" / node["inputs"]["image"]).is_file()


@pytest.mark.parametrize("name", NAMES[:3])
def test_the_images_carry_their_workflow(script, name):
    with Image.open(script.EXAMPLES / f"{name}.png") as image:
        assert json.loads(image.text["prompt"]) == read(script.EXAMPLES / "api" / f"{name}.json")
        assert json.loads(image.text["workflow"]) == read(script.EXAMPLES / f"{name}.json")
    assert (script.EXAMPLES / f"{name}.jpg").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_every_input_is_given_and_every_link_fits(workflows, name):
    graph = workflows.graphs()[name]
    for node in graph.values():
        kind = workflows.node_type(node["class_type"])
        required = set(kind.inputs)
        if node["class_type"] == "RegionRouteScore":
            required.remove("target")
        assert required <= set(node["inputs"]) <= set(kind.inputs)
        for key, value in node["inputs"].items():
            if isinstance(value, list):
                other, slot = value
                sent = workflows.node_type(graph[other]["class_type"]).outputs[slot]
                assert kind.inputs[key] in (sent, "*")
            else:
                assert kind.inputs[key] in workflows.WIDGETS


@pytest.mark.parametrize("name", NAMES)
def test_browser_links_lead_to_their_sockets(workflows, name):
    browser = workflows.for_browser(workflows.graphs()[name])
    nodes = {node["id"]: node for node in browser["nodes"]}
    assert len({tuple(node["pos"]) for node in nodes.values()}) == len(nodes)
    for number, source, output, target, slot, io in browser["links"]:
        assert number in nodes[source]["outputs"][output]["links"]
        assert nodes[target]["inputs"][slot]["link"] == number
        assert nodes[source]["outputs"][output]["type"] == io
    for node in nodes.values():
        widgets = [io for io in workflows.node_type(node["type"]).inputs.values()]
        expected = sum(io in workflows.WIDGETS for io in widgets)
        extra = ("seed" in workflows.node_type(node["type"]).inputs) + (
            node["type"] in workflows.UPLOADS
        )
        assert len(node["widgets_values"]) == expected + extra


def test_the_smallest_example_runs_to_its_image(script, workflows):
    made = script.run(workflows.graphs()["edit_by_image"])
    with Image.open(script.EXAMPLES / "edit_by_image.png") as stored:
        assert made.size == stored.size
        different = sum(
            abs(a - b) > 2 for a, b in zip(made.tobytes(), stored.tobytes(), strict=True)
        )
    assert different < 0.01 * len(made.tobytes())


def test_the_registry_finds_what_it_requires(script):
    settings = tomllib.loads((script.PACK / "pyproject.toml").read_text(encoding="utf-8"))
    library = tomllib.loads((script.PACK.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["project"]["version"] == library["project"]["version"]
    assert settings["project"]["dependencies"] == ["regionroute"]
    assert settings["tool"]["comfy"]["PublisherId"]
    assert (script.PACK / "requirements.txt").read_text().split() == ["regionroute"]
    ignored = (script.PACK / ".comfyignore").read_text().splitlines()
    assert all((script.PACK / name).exists() for name in ignored if name.endswith(".py"))
