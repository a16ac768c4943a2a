import pytest
import torch

from pseudo_labels.stylize.filters import FILTERS
from pseudo_labels.stylize.registry import load_styles, packaged_styles
from regionroute.data.images import write_image
from regionroute.errors import UserError

GOOD = "  neon:\n    phrase: neon night\n    stylizer: filter\n    settings: {filter: cyberpunk}\n"


def write(folder, text):
    path = folder / "styles.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_packaged_files_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["painting", "photos", "scenes", "small_experts", "small_paintings", "small_photos"]
    assert packaged_styles() == names
    seen = {e.spec.name: e for name in names[-2:] for e in load_styles(name)}
    shipped = load_styles("small_experts")
    unseen = [entry for entry in shipped if entry.spec.name not in seen]
    assert len(unseen) == 4
    assert all(entry == seen[entry.spec.name] for entry in shipped if entry not in unseen)
    assert {(e.spec, e.stylizer) for e in unseen} <= {
        (e.spec, e.stylizer) for e in load_styles("photos")
    }
    assert [entry.spec.name for entry in load_styles("scenes")] == list(FILTERS)
    with pytest.raises(UserError, match="style 'line-art' is named twice"):
        load_styles("scenes", ["line-art", "line-art"])
    assert len(load_styles("painting")) >= 4


def test_a_file_gives_names_phrases_and_stylizers(tmp_path):
    path = write(
        tmp_path, f"styles:\n{GOOD}  wash: {{stylizer: painting, settings: {{style: 14}}}}\n"
    )
    neon, wash = load_styles(path)
    assert (neon.spec.name, neon.spec.words) == ("neon", "neon night")
    assert wash.spec.words == "wash"
    content = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(neon.build().stylize(content, neon.spec), FILTERS["cyberpunk"](content))


def test_names_choose_and_order_the_styles():
    chosen = load_styles("scenes", ["cyberpunk", "pixel-art"])
    assert [entry.spec.name for entry in chosen] == ["cyberpunk", "pixel-art"]


def test_a_reference_picture_lies_beside_the_styles_file(tmp_path, monkeypatch):
    write_image(tmp_path / "art.png", torch.rand(3, 40, 40))
    path = write(
        tmp_path, "styles:\n  mine: {stylizer: painting, settings: {reference: art.png}}\n"
    )
    monkeypatch.chdir("/")
    assert load_styles(path)[0].build().fingerprint.startswith("painting")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("styles: [", r"styles.yaml:\d+: this is not valid YAML"),
        ("", "holds 'styles:'"),
        ("- a", "holds 'styles:'"),
        ("styles: {}", "holds 'styles:'"),
        (f"styles:\n{GOOD}colour: red\n", "unknown key 'colour'"),
        ("styles: {neon: 3}", "needs 'stylizer'"),
        (f"styles:\n{GOOD}    phrse: x\n", "nearest known one is 'phrase'"),
        ("styles: {a: {stylizer: fliter}}", "nearest known one is 'filter'"),
        ("styles: {a: {stylizer: filter, settings: 3}}", "'settings' must be a mapping"),
        ("styles: {a: {stylizer: painting, settings: {stile: 3}}}", "nearest known one is 'style'"),
        ("styles: {a/b: {stylizer: filter}}", "letters, digits"),
        (f"styles:\n{GOOD}    phrase: x\n", "'phrase' is given twice"),
        ("styles: {a: {stylizer: filter, phrase: ''}}", "'phrase' must be"),
        (f"styles:\n{GOOD}{GOOD.replace('neon:', 'two:')}", "share the phrase"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        load_styles(write(tmp_path, text))
    assert "styles.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{filter: cyberpink}", "'cyberpunk'"),
        ("{}", "filter"),
        ("{filter: [1]}", "style 'a'"),
    ],
)
def test_wrong_settings_name_the_style(tmp_path, settings, message):
    entry = load_styles(
        write(tmp_path, f"styles: {{a: {{stylizer: filter, settings: {settings}}}}}")
    )
    with pytest.raises(UserError, match=message) as caught:
        entry[0].build()
    assert "style 'a'" in str(caught.value)


def test_a_missing_file_and_an_unknown_style_say_what_there_is(tmp_path):
    with pytest.raises(UserError, match="packaged files: painting, photos, scenes"):
        load_styles(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="nearest known one is 'line-art'"):
        load_styles("scenes", ["lineart"])
