"""`regionroute experts`: everything through the command, on the tiny base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxKontextPipeline
from safetensors.torch import load_file

from regionroute.adapters import FixedRouter, RouteContext, load_experts, read_registry, routed
from regionroute.adapters.files.card import card_scores
from regionroute.cli.main import main
from regionroute.editing.editor import Editor
from regionroute.editing.request import EditOptions, EditRequest
from regionroute.models.embedded import nano_folder
from regionroute.models.loading import fingerprint, load_base, load_skeleton

FILE = "pytorch_lora_weights.safetensors"


def update(folder: Path, style: str) -> dict[str, torch.Tensor]:
    """What an expert's file adds to each layer."""
    registry = read_registry(folder)
    state = load_file(folder / registry.experts[registry.index(style)].file)
    names = [key.removesuffix(".lora_A.weight") for key in state if key.endswith("A.weight")]
    scale = registry.alpha / registry.rank
    return {
        name: state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"] * scale
        for name in names
    }


def test_show(tiny_experts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experts", "show", str(tiny_experts)]) == 0
    out = capsys.readouterr().out
    assert "rank:    2, alpha 4" in out
    assert "experts: 2" in out
    assert f"pixel-art/{FILE}" in out


def change_registry(source: Path, folder: Path, **values: Any) -> Path:
    """A copy of experts whose experts.json has other values."""
    shutil.copytree(source, folder)
    path = folder / "experts.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def test_show_prints_no_escapes(
    tiny_experts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = [{"style": "\x1b[2Jink", "file": "\x1b]0;x\x07/y"}]
    extra = {"license": "\x1b[31mmit"}
    folder = change_registry(tiny_experts, tmp_path / "x", experts=evil, base="\x1b", extra=extra)
    assert main(["experts", "show", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "\\x1b[2Jink" in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("routing", 5),
        ("metrics", 5),
        ("metrics", {"Leak": "low"}),
        ("metrics", {"Leak": {"mean": 1}}),
        ("slices", 5),
        ("slices", {"all": 5}),
        ("data", [1]),
        ("losses", {"flow": [1]}),
    ],
)
def test_facts_that_the_card_cannot_show_are_one_sentence(
    key: str,
    value: Any,
    tiny_experts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    extra = {"license": "mit", key: value}
    folder = change_registry(tiny_experts, tmp_path / "x", extra=extra)
    card = (folder / "README.md").read_bytes()
    commands = [["card", str(folder)], ["push", str(folder), "--to-hub", "me/x", "--dry-run"]]
    if key not in ("metrics", "slices"):  # of the old experts, not written
        small = str(tmp_path / "small")
        commands.append(["compress", str(folder), "--dtype", "float16", "--out", small])
    for arguments in commands:
        assert main(["experts", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: experts.json: extra.{key}")
        assert error.count("\n") == 1
    assert (folder / "README.md").read_bytes() == card
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x"]


@pytest.mark.parametrize("form", ["diffusers", "peft", "comfyui"])
def test_files_of_other_programs_come_back_as_the_same_experts(
    form: str,
    tiny_experts: Path,
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, back = tmp_path / "loras", tmp_path / "back"
    arguments = ["experts", "export", str(tiny_experts), "--format", form, "--out", str(out)]
    assert main(arguments) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert all(path.is_file() for path in paths)
    if form == "peft":
        paths = [path.parent for path in paths]
    pairs = [f"pixel-art={paths[0]}", f"lines={paths[1]}"]
    options = ["--base", str(tiny_base), "--out", str(back), "--license", "mit"]
    assert main(["experts", "import", *pairs, *options]) == 0
    registry = read_registry(back)
    assert (registry.rank, registry.targets, registry.alpha) == (2, "regionroute", 4)
    assert registry.extra["license"] == "mit"
    for style in ("pixel-art", "lines"):
        ours, again = update(tiny_experts, style), update(back, style)
        assert ours.keys() == again.keys()
        for name, x in ours.items():
            torch.testing.assert_close(again[name], x, rtol=1e-5, atol=1e-6)
    load_experts(back, load_base(str(tiny_base)))  # the skeleton had the base's fingerprint


def test_a_merged_base_edits_as_the_expert_does(
    tiny_base: Path, tiny_experts: Path, tmp_path: Path
) -> None:
    image = torch.rand(3, 24, 40, generator=torch.Generator().manual_seed(0))
    out = tmp_path / "merged"
    arguments = ["experts", "merge", str(tiny_experts)]  # into the experts' own base
    assert main([*arguments, "--style", "pixel-art", "--out", str(out)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged"]
    assert len({file.stat().st_mode for file in (out / "transformer").iterdir()}) == 1
    FluxKontextPipeline.from_pretrained(out)
    merged = Editor(load_base(str(out))).edit(
        image, EditRequest("dog", "pixel-art"), EditOptions(steps=2, mode="plain")
    )
    expert = Editor(load_base(str(tiny_base)), tiny_experts)
    expected = expert.edit(
        image, EditRequest("dog", "pixel-art"), EditOptions(steps=2, mode="plain")
    )
    torch.testing.assert_close(merged.image, expected.image, rtol=0, atol=1e-5)
    plain = Editor(load_base(str(tiny_base))).edit(
        image, EditRequest("dog", "pixel-art"), EditOptions(steps=2, mode="plain")
    )
    assert (plain.image - expected.image).abs().max() > 1e-3


def test_a_merged_blend(tiny_base: Path, tiny_experts: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    out.mkdir()
    arguments = ["experts", "merge", str(tiny_experts), "--base", str(tiny_base)]
    assert main([*arguments, "--style", "0.5 pixel-art + 0.25 lines", "--out", str(out)]) == 0
    base, merged = load_base(str(tiny_base)), load_base(str(out))
    load_experts(tiny_experts, base)
    linear = merged.transformer.transformer_blocks[0].attn.to_q
    layer = base.transformer.transformer_blocks[0].attn.to_q
    h = torch.randn(1, 3, linear.in_features)
    with routed(base.transformer, RouteContext(router=FixedRouter(torch.tensor([0.5, 0.25])))):
        torch.testing.assert_close(linear(h), layer(h), rtol=1e-5, atol=1e-5)


def test_a_blend_becomes_one_file(tiny_experts: Path, tmp_path: Path) -> None:
    arguments = ["experts", "export", str(tiny_experts), "--format", "diffusers"]
    blend = ["--style", "0.5 pixel-art + 2 lines", "--name", "half and two"]
    assert main([*arguments, "--out", str(tmp_path), *blend]) == 0
    state = load_file(tmp_path / "half-and-two" / FILE)
    one, two = update(tiny_experts, "pixel-art"), update(tiny_experts, "lines")
    for name, x in one.items():
        b, a = state[f"{name}.lora_B.weight"], state[f"{name}.lora_A.weight"]
        assert a.shape[0] == 4
        torch.testing.assert_close(b @ a * 2, 0.5 * x + 2 * two[name], rtol=1e-5, atol=1e-5)


def test_compressed_experts(
    tiny_experts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small"
    arguments = ["experts", "compress", str(tiny_experts), "--out", str(out)]
    assert main([*arguments, "--rank", "1", "--dtype", "float8"]) == 0
    text = capsys.readouterr().out
    assert "pixel-art        changed by" in text
    assert f"MB: {out}" in text
    assert read_registry(out).rank == 1
    assert {x.dtype for x in load_file(out / "lines" / FILE).values()} == {torch.float8_e4m3fn}


def summary(**methods: float) -> dict[str, Any]:
    def row(mean: float | None) -> dict[str, Any]:
        return {"mean": mean, "low": mean, "high": mean}

    return {
        "metrics": {"leak": {"label": "Leak"}, "iou": {"label": "Map IoU"}},
        "methods": {
            name: {"slices": {"all": {"leak": row(mean), "iou": row(None)}}}
            for name, mean in {"floor": 0.0, "ceiling": 0.0, **methods}.items()
        },
    }


def test_card_with_scores_and_licence(tiny_experts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "experts"
    shutil.copytree(tiny_experts, folder)
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(summary(ours=0.125)))
    assert main(["experts", "card", str(folder), "--scores", str(path), "--license", "mit"]) == 0
    text = (folder / "README.md").read_text()
    assert "| Leak | 0.125 (0.125 to 0.125) |" in text
    assert "Map IoU" not in text
    assert "license: mit" in text
    registry, before = read_registry(folder), read_registry(tiny_experts)
    assert registry.extra["metrics"]["Leak"]["mean"] == 0.125
    assert registry.model_copy(update={"extra": before.extra}) == before
    assert card_scores(summary(a=0.1, b=0.2), path, "b")["Leak"]["mean"] == 0.2


@pytest.mark.parametrize("text", ["# My thesis\n", "---\ntitle: x\n---\n- regionroute\n", ""])
def test_a_foreign_readme_stays_and_ours_is_written_again(
    tiny_experts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    folder = tmp_path / "experts"
    shutil.copytree(tiny_experts, folder)
    readme, beside = folder / "README.md", folder / "README.regionroute.md"
    card = readme.read_text()
    assert main(["experts", "card", str(folder), "--license", "mit"]) == 0
    assert "license: mit" in readme.read_text()
    assert not beside.exists()
    readme.write_text(text)
    for licence in ("mit", "cc0-1.0"):
        assert main(["experts", "card", str(folder), "--license", licence]) == 0
        assert readme.read_text() == text
        assert beside.read_text().startswith(card[:3])
        assert f"license: {licence}" in beside.read_text()
    assert capsys.readouterr().out.split()[-1] == str(beside)


def test_the_skeleton_of_the_embedded_base_is_the_base() -> None:
    skeleton = load_skeleton("nano")
    assert next(skeleton.parameters()).is_meta
    assert fingerprint(skeleton) == read_registry(nano_folder() / "experts").fingerprint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: ACTION"),
        (["shw"], "invalid choice: 'shw'"),
        (["show", "nowhere"], "no experts.json here"),
        (["export", "{experts}", "--format", "peft", "--out", "{tmp}/x", "--name", "y"], "--name"),
        (["export", "{experts}", "--format", "diffusers", "--out", "{experts}"], "themselves"),
        (
            ["export", "{experts}", "--format", "peft", "--out", "{tmp}/x", "--style", "pixle-art"],
            'the nearest is "pixel-art"',
        ),
        (["import", "a", "--base", "{base}", "--out", "{tmp}/x"], "write STYLE=FILE"),
        (["import", "a=x", "a=y", "--base", "{base}", "--out", "{tmp}/x"], "a file for a already"),
        (["import", "a=none", "--base", "{base}", "--out", "{tmp}/x"], "no such LoRA file"),
        (["import", "a={other}", "--base", "{base}", "--out", "{tmp}/x"], "another base"),
        (
            ["merge", "{experts}", "--style", "lines", "--base", "{base}", "--out", "{tmp}"],
            "the folder is not empty",
        ),
        (["merge", "{experts}", "--style", "lines", "--base", "nano", "--out", "{tmp}/x"], "base"),
        (
            ["compress", "{experts}", "--dtype", "float8", "--out", "{experts}"],
            "the folder is not empty",
        ),
        (
            ["compress", "{experts}", "--rank", "3", "--dtype", "float8", "--out", "{tmp}/x"],
            "the experts have rank 2",
        ),
        (["card", "{experts}", "--method", "ours"], "give the summary with --scores"),
        (["card", "{experts}", "--scores", "{tmp}/two.json"], "--method: floor, ceiling, a, b"),
        (["card", "{experts}", "--scores", "{tmp}/no.json"], "not a summary.json"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str],
    message: str,
    tiny_experts: Path,
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "two.json").write_text(json.dumps(summary(a=1, b=2)))
    (tmp_path / "no.json").write_text("[]")
    other = nano_folder() / "experts" / "pixel-art"
    before = sorted(tmp_path.rglob("*"))
    names = {"experts": tiny_experts, "base": tiny_base, "tmp": tmp_path, "other": other}
    assert main(["experts", *(argument.format(**names) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert sorted(tmp_path.rglob("*")) == before
