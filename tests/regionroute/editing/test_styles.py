"""Styles of an edit: by name, blended, by example; and which experts each is routed to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from regionroute.adapters import SimilarityRouter, adapter_layers, inject, save_experts
from regionroute.adapters.files.export import expert_names
from regionroute.adapters.files.style_embeddings import StyleEmbeddings
from regionroute.adapters.style_encoder import (
    FOLDER,
    EncoderSettings,
    StyleEncoder,
    new_tower,
    save_style_encoder,
)
from regionroute.cli import main as cli
from regionroute.data.images import write_image
from regionroute.data.prompts import Prompt, build_prompt, with_style
from regionroute.editing.editor import Editor
from regionroute.editing.request import EditOptions, EditRequest
from regionroute.editing.styles import Styles
from regionroute.errors import UserError
from regionroute.models.backbone import Backbone
from regionroute.models.bundled import bundled_experts
from regionroute.models.loading import load_base


@pytest.fixture(scope="module")
def by_example(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three random experts for `tiny_base`, chosen by a style's embedding; read only."""
    folder = tmp_path_factory.mktemp("by-example")
    base, generator = load_base(str(tiny_base)), torch.Generator().manual_seed(3)
    torch.manual_seed(0)
    settings = EncoderSettings(levels=(-1, -2), tokens=2, width=4)
    encoder = StyleEncoder(new_tower(16, 8, 16, 2, 2), settings).eval()
    inject(
        base.transformer, "regionroute", 3, 2, 4.0,
        router=lambda: SimilarityRouter(encoder.style_dim, 3, 2, generator=generator),
    )  # fmt: skip
    for layer in adapter_layers(base.transformer).values():
        layer.lora_B.data = torch.randn(layer.lora_B.shape, generator=generator) * 0.3
    save_style_encoder(folder / FOLDER, encoder)
    styles = {name: encoder.embed(example(name)) for name in ("ink", "oil")}
    StyleEmbeddings(styles).save(folder)
    routing = {"branch": "expert", "prompt": "object"}
    save_experts(
        folder, base.transformer, expert_names(3), base_name=base.name,
        base_fingerprint=base.fingerprint, extra={"routing": routing},
    )  # fmt: skip
    return folder


def example(name: str, size: int = 20) -> torch.Tensor:
    seed = {"ink": 1, "oil": 2}[name]
    return torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed))


def photo() -> torch.Tensor:
    return torch.rand(3, 24, 40, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def editor(tiny_backbone: Backbone, by_example: Path) -> Editor:
    return Editor(tiny_backbone, by_example)


@pytest.fixture
def named(tiny_base: Path, tiny_experts: Path) -> Editor:
    return Editor(load_base(str(tiny_base)), tiny_experts)


@pytest.mark.parametrize("mode", ["plain", "routed"])
def test_an_example_of_a_style_edits_as_its_name_does(editor: Editor, mode: str) -> None:
    given = torch.ones(24, 40)  # everything restyled, so that the styles can be compared
    regions = (given,) if mode == "routed" else ()
    options = EditOptions(mode=mode, steps=2)
    shown, named, other = (
        editor.edit(photo(), request, options)
        for request in (
            EditRequest("dog", "", regions=regions, style_images=(example("ink"),)),
            EditRequest("dog", "ink", regions=regions),
            EditRequest("dog", "oil", regions=regions),
        )
    )
    torch.testing.assert_close(shown.image, named.image)
    assert (shown.image - other.image).abs().max() > 1e-3
    assert shown.settings["nearest_trained_style"] == [["ink", 1.0]]
    assert "nearest_trained_style" not in named.settings


def test_the_encoder_is_loaded_without_a_progress_bar(
    editor: Editor, capfd: pytest.CaptureFixture[str]
) -> None:
    assert editor.styles.encoder.style_dim
    assert "Loading" not in capfd.readouterr().err


def test_with_examples_marks_are_compared_by_their_objects(editor: Editor) -> None:
    images = (example("ink"), example("oil"))
    routed = EditOptions(mode="routed")
    fits, turned = (
        EditRequest("dog", "", prompt, also=(("cup", ""),), style_images=images)
        for prompt in ("[Dog] {this}, [cup] {that}", "[cup] {this}, [dog] {that}")
    )
    editor.check(fits, routed)
    with pytest.raises(UserError, match=r"order, \[dog\] {style}, \[cup\] {style}"):
        editor.check(turned, routed)


def test_a_blend_lies_between_its_styles(editor: Editor) -> None:
    ink, oil, half = (
        editor.styles.resolve(style).embedding for style in ("ink", "oil", "0.5 ink + 0.5 oil")
    )
    torch.testing.assert_close(half, (ink + oil) / 2)


def test_by_name_a_blend_weighs_experts(named: Editor) -> None:
    registry = named.registry
    assert registry is not None
    styles = Styles(registry)
    style = styles.resolve("0.6 pixel-art + 0.4 lines")
    assert style.blended
    assert style.words == "pixel-art and line-art"
    assert style.name == "0.6 pixel-art + 0.4 lines"
    route = styles.route([style])
    assert route is not None
    assert route.router is not None
    decided = route.router(route)
    weights = dict(zip(decided.index[0].tolist(), decided.weight[0].tolist(), strict=True))
    assert weights == pytest.approx({0: 0.6, 1: 0.4})
    alone = styles.route([styles.resolve("lines"), styles.resolve("lines").without_experts()])
    assert alone is not None
    assert alone.expert_ids is not None
    assert alone.expert_ids.tolist() == [1, -1]


def test_a_blend_of_one_whole_style_is_that_style(named: Editor) -> None:
    image = photo()
    one = named.edit(image, EditRequest("dog", "pixel-art"), EditOptions(steps=1)).image
    assert torch.equal(
        named.edit(image, EditRequest("dog", "1 pixel-art"), EditOptions(steps=1)).image, one
    )
    half = named.edit(image, EditRequest("dog", "0.5 pixel-art"), EditOptions(steps=1)).image
    none = named.edit(image, EditRequest("dog", "0.000001 pixel-art"), EditOptions(steps=1)).image
    assert 0 < (half - none).abs().mean() < (one - none).abs().mean()


def test_a_blend_restyles_with_experts_even_where_the_base_does_alone(named: Editor) -> None:
    named.routing = named.routing.model_copy(update={"branch": "base"})
    bare, weak, strong = (
        named.edit(
            photo(),
            EditRequest("dog", style, regions=(torch.ones(24, 40),)),
            EditOptions(mode="routed", steps=1),
        ).image
        for style in ("pixel-art", "0.5 pixel-art", "1.5 pixel-art")
    )
    assert (weak - strong).abs().max() > 1e-3
    assert (weak - bare).abs().max() > 1e-3


@pytest.mark.parametrize("prompt", ["object", "image"])
def test_what_a_branch_is_told(editor: Editor, prompt: str, spy: Callable) -> None:
    editor.routing = editor.routing.model_copy(update={"prompt": prompt})
    said: list[list[str]] = []
    encode = editor.backbone.encode_prompts
    editor.backbone.encode_prompts = lambda texts: said.append(texts) or encode(texts)  # type: ignore[method-assign]
    editor.edit(photo(), EditRequest("dog", "ink"), EditOptions(steps=1, mode="routed"))
    told = {
        "object": "make the dog in reference style, keep other area unchanged",
        "image": "make the image in reference style",
    }
    assert said[-1] == [told[prompt]]


def test_marked_prompts_and_prompts_with_spans_lose_their_style_words(editor: Editor) -> None:
    for prompt in ("paint the [dog] like {ink}", build_prompt([("dog", "ink")])):
        result = editor.edit(
            photo(), EditRequest("dog", "ink", prompt=prompt), EditOptions(steps=1)
        )
        assert "ink" not in result.prompt
        assert "reference" in result.prompt
    shown = editor.edit(
        photo(),
        EditRequest(
            "dog", "", style_images=(example("oil"),), prompt="paint the [dog] like {this}"
        ),
        EditOptions(steps=1),
    )
    assert shown.prompt == "paint the dog like reference"


def test_words_of_several_pairs_are_replaced_and_found() -> None:
    prompt = with_style(build_prompt([("dog", "ink"), ("cup", "oil paint")]), "reference")
    assert prompt.text == (
        "make the dog in reference style and the cup in reference style, keep other area unchanged"
    )
    assert [prompt.text[slice(*span)] for span in prompt.style_spans] == ["reference"] * 2
    assert [prompt.text[slice(*span)] for span in prompt.object_spans] == ["dog", "cup"]
    first = Prompt("oil on the dog", ((11, 14),), ((0, 3),))
    assert with_style(first, "x").text == "x on the dog"


def test_what_cannot_be_is_said(editor: Editor, named: Editor) -> None:
    with pytest.raises(UserError, match='not trained on style "inc", the nearest is "ink"'):
        editor.edit(photo(), EditRequest("dog", "inc"))
    with pytest.raises(UserError, match="chosen by the name of a style"):
        named.edit(photo(), EditRequest("dog", "", style_images=(example("ink"),)))
    with pytest.raises(UserError, match="2 style images for 1 objects"):
        editor.edit(photo(), EditRequest("dog", "", style_images=(example("ink"),) * 2))
    with pytest.raises(UserError, match="needs a weight and a style"):
        named.edit(photo(), EditRequest("dog", "0.6 pixel-art + lines"))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write_image(tmp_path / "photo.png", photo())
    write_image(tmp_path / "ref.png", example("ink"))
    (tmp_path / "broken.png").write_bytes(b"nothing")
    return tmp_path


def run(files: Path, base: Path, experts: Path, *more: str) -> int:
    arguments = ["edit", str(files / "photo.png"), "--base", str(base), "--experts", str(experts)]
    return cli.main([*arguments, "--out", str(files / "out.png"), "--steps", "1", *more])


def test_the_command_takes_an_example(
    files: Path, tiny_base: Path, by_example: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--object", "dog", "--style-image", str(files / "ref.png"))
    assert run(files, tiny_base, by_example, *more) == 0
    sidecar = json.loads((files / "out.json").read_text())
    assert sidecar["style_image"] == str(files / "ref.png")
    assert sidecar["nearest_trained_style"][0][0] == "ink"
    assert "most like ink of the trained styles, cosine 1.00" in capsys.readouterr().out
    twice = (*more, "--object", "cup", "--style-image", str(files / "ref.png"))
    assert run(files, tiny_base, by_example, *twice) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--object", "dog", "--style-image", "ref.png", "--style", "ink"], "not both"),
        (["--style-image", "ref.png"], "--object is missing or empty"),
        (
            ["--object", "dog", "--object", "cup", "--style-image", "ref.png"],
            "as many --style-imag",
        ),
        (["--object", "dog", "--style-image", "nowhere.png"], "nowhere.png"),
        (["--object", "dog", "--style-image", "broken.png"], "broken.png"),
    ],
)
def test_a_wrong_example_is_one_sentence(
    files: Path, tiny_base: Path, by_example: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, more: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(files)
    assert run(files, tiny_base, by_example, *more) == 2
    assert message in capsys.readouterr().err
    assert not (files / "out.png").exists()


def test_rows_take_examples(
    files: Path, tiny_base: Path, by_example: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"image": "photo.png", "object": "dog", "style_image": "ref.png", "out": "a.png"}
    rows = [
        good,
        good | {"style_image": "broken.png", "out": "b.png"},
        good | {"style": "ink", "out": "c.png"},
    ]
    path = files / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--base", str(tiny_base), "--experts", str(by_example), "--steps", "1"]
    assert cli.main(["edit", "--batch", str(path), *arguments]) == 1
    said = capsys.readouterr()
    assert "edited 1, skipped 0, failed 2" in said.out
    assert "broken.png" in said.err
    assert "style_image takes the place of 'style' and 'also'" in said.err
    assert json.loads((files / "a.json").read_text())["style_image"] == "ref.png"


def test_a_base_may_bring_experts_for_examples_and_says_if_not(
    tiny_base: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="comes without experts for style images"):
        bundled_experts(str(tiny_base), by_example=True)
