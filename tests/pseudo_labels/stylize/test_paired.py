"""Targets that exist already, found by the names of the photos."""

import pytest
import torch
from PIL import Image

from pseudo_labels.job import BuildSettings
from pseudo_labels.label import label
from pseudo_labels.stylize.paired import PairedStylizer
from regionroute.data.images import from_pil
from regionroute.data.manifest import StyleSpec, load_manifest
from regionroute.errors import UserError
from regionroute.files import write_jsonl

SPEC = StyleSpec("mine")


def photo(number, size=(96, 64)):
    generator = torch.Generator().manual_seed(number)
    values = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(values.numpy())


@pytest.fixture
def folders(tmp_path):
    """Three photos with masks in "before", inverted ones in "after"; one has no partner."""
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    rows = []
    for number in range(3):
        image = photo(number)
        image.save(before / f"{number}.png")
        if number < 2:
            inverted = Image.eval(image, lambda value: 255 - value)
            inverted.save(after / f"{number}.{('png', 'tiff')[number]}")
        mask = Image.new("L", image.size)
        mask.paste(255, (20, 10, 60, 50))
        mask.save(before / f"{number}.mask.png")
        rows.append({"file": f"{number}.png", "word": "thing", "mask": f"{number}.mask.png"})
    write_jsonl(before / "labels.jsonl", rows)
    return before, after


def test_pairs_are_labelled_by_name(folders, tmp_path):
    before, _ = folders
    styles = tmp_path / "styles.yaml"
    styles.write_text("styles:\n  mine:\n    stylizer: pairs\n    settings: {after: after}\n")
    report = label(
        tmp_path / "pairs", labels=before / "labels.jsonl", styles=styles, test_share=0.5,
        settings=BuildSettings(whole=True), workers=1,
    )  # fmt: skip
    manifest = load_manifest(report.manifest)
    singles = [sample for sample in manifest.samples if not sample.whole]
    assert len(singles) == 2
    for sample in singles:
        context, target = manifest.context(sample), manifest.target(sample)
        mask = manifest.masks(sample).amax(0)
        torch.testing.assert_close(target, torch.where(mask > 0, 1 - context, context))
    [whole] = [sample for sample in manifest.samples if sample.whole]
    torch.testing.assert_close(manifest.target(whole), 1 - manifest.context(whole))
    [rejected] = [item for item in report.rejected if item.photo == "2.png"]
    assert "no restyled photo is named 2, like 2.png" in rejected.reason


def test_other_sizes_are_scaled_and_other_proportions_refused(folders):
    before, after = folders
    content = from_pil(photo(0))
    photo(0).resize((192, 128)).save(after / "0.png")
    stylizer = PairedStylizer.build(after=str(after))
    styled = stylizer.stylize_photo(before / "0.png", content, SPEC)
    assert styled.shape == content.shape
    assert (styled - content).abs().mean() < 0.2
    photo(0, (96, 96)).save(after / "0.png")
    again = PairedStylizer.build(after=str(after))
    assert again.fingerprint != stylizer.fingerprint
    with pytest.raises(UserError, match=r"96x96 has other proportions than its photo 0\.png"):
        again.stylize_photo(before / "0.png", content, SPEC)


def test_folders_that_cannot_be_meant(folders, tmp_path):
    _, after = folders
    with pytest.raises(UserError, match="nowhere: no such folder of images"):
        PairedStylizer.build(after=str(tmp_path / "nowhere"))
    photo(0).save(after / "0.jpg")
    with pytest.raises(UserError, match=r"0\.jpg and 0\.png have one name"):
        PairedStylizer.build(after=str(after))
    with pytest.raises(UserError, match="restyles photos that are files"):
        PairedStylizer.build(after=str(after.parent / "before")).stylize(from_pil(photo(0)), SPEC)
