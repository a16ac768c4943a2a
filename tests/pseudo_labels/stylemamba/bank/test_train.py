"""Bank files, targets, and training: what is learned, what a resumed run repeats."""

import pytest
import torch

from pseudo_labels.stylemamba.bank import train as module
from pseudo_labels.stylemamba.bank.grams import StyleLoss
from pseudo_labels.stylemamba.bank.saved import FACTS_FILE, WEIGHTS_FILE, load_bank
from pseudo_labels.stylemamba.bank.styles import read_bank
from pseudo_labels.stylemamba.bank.targets import batches, paint_targets, plan_targets, resized
from pseudo_labels.stylemamba.bank.train import BankData, learning_rate, train_bank
from regionroute.data.images import read_image, write_image
from regionroute.errors import UserError
from regionroute.files import read_jsonl
from regionroute.models.vgg import VggFeatures


def test_a_bank_file_holds_words_and_images(bank_file):
    first, second = read_bank(bank_file)
    assert (first.name, first.words) == (
        "line-art", ("line-art", "ink outlines", "black and white drawing"),
    )  # fmt: skip
    assert first.image is None
    assert second.image == bank_file.parent / "style.png"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("image: style.png", "image: nowhere.png", "image 'nowhere.png' is no file"),
        ("[glowing lights]", "glow", "'words' must be a list"),
        ("stylizer: filter", "stylizer: filtre", "nearest known one is 'filter'"),
    ],
)
def test_wrong_bank_files_are_refused(bank_file, old, new, message):
    bank_file.write_text(bank_file.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        read_bank(bank_file)


def test_targets_are_paintings_of_their_photos(bank_file, photos, tmp_path):
    styles = read_bank(bank_file)
    targets = plan_targets(photos, styles, 2, 32, tmp_path / "t")
    paint_targets(targets, styles, 32)
    assert [target.style for target in targets] == [0, 1, 0, 1]
    for target in targets:
        style = styles[target.style].entry
        wanted = style.build().stylize(resized(target.photo, 32), style.spec)
        assert (read_image(target.painted) - wanted).abs().max() < 1 / 255
    # A style keeps its targets when others join.
    alone = plan_targets(photos, styles[1:], 2, 32, tmp_path / "t")
    assert [t.painted for t in alone] == [t.painted for t in targets if t.style == 1]


def test_crops_of_photo_and_painting_are_of_one_place(bank_file, photos, tmp_path):
    styles = read_bank(bank_file)
    targets = plan_targets(photos, styles, 2, 32, tmp_path / "t")
    for target in targets:  # paintings that are their photos, inverted
        target.painted.parent.mkdir(parents=True, exist_ok=True)
        write_image(target.painted, 1 - resized(target.photo, 32))
    crops, painted, style = next(batches(targets, 32, 16, 5, seed=0))
    assert crops.shape == painted.shape == (5, 3, 16, 16)
    assert style.shape == (5,)
    assert (crops + painted - 1).abs().max() < 2 / 255


def test_training_lowers_the_loss_and_can_be_resumed(
    bank_file, photos, small, tmp_path, monkeypatch
):
    data = BankData(read_bank(bank_file), photos)
    whole = train_bank(data, small, tmp_path / "whole")
    rows = read_jsonl(tmp_path / "whole" / "losses.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 7))

    calls = []
    follow = module._follow

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 4:  # after the checkpoint of step 2
            raise KeyboardInterrupt
        follow(*arguments)

    monkeypatch.setattr(module, "_follow", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_bank(data, small, tmp_path / "parts")
    monkeypatch.setattr(module, "_follow", follow)
    again = train_bank(data, small, tmp_path / "parts")
    for name, value in whole.painter.state_dict().items():
        assert torch.equal(value, again.painter.state_dict()[name]), name
    changed = small.model_copy(update={"train": small.train.model_copy(update={"batch": 1})})
    with pytest.raises(UserError, match="other styles, photos, networks or settings"):
        train_bank(data, changed, tmp_path / "parts")


def test_two_styles_are_learned(bank_file, photos, small, tmp_path):
    longer = {"steps": 150, "learning_rate": 5e-3, "batch": 4, "average": 0.5}
    config = small.model_copy(update={"train": small.train.model_copy(update=longer)})
    bank = train_bank(BankData(read_bank(bank_file), photos), config, tmp_path / "bank")
    photo = resized(photos[0], 32)[None]
    line_art, neon = (bank.paint(photo, torch.eye(2)[n]) for n in (0, 1))
    assert line_art.mean() > neon.mean() + 0.3  # ink on white paper, light in the dark


def test_a_saved_bank_paints_the_same(bank_file, photos, small, tmp_path):
    bank = train_bank(BankData(read_bank(bank_file), photos), small, tmp_path / "bank")
    loaded = load_bank(tmp_path / "bank")
    photo, weights = torch.rand(1, 3, 32, 40), torch.tensor([0.3, 0.7])
    error = (loaded.paint(photo, weights) - bank.paint(photo, weights)).abs().max()
    assert error < 2e-3  # weights are stored in fp16
    assert list(loaded.styles) == list(bank.styles)
    assert torch.equal(loaded.paint(photo, weights, strength=0), photo)
    (tmp_path / "bank" / WEIGHTS_FILE).write_bytes(b"damaged")
    with pytest.raises(UserError, match="this bank is damaged"):
        load_bank(tmp_path / "bank")
    (tmp_path / "bank" / FACTS_FILE).unlink()
    with pytest.raises(UserError):
        load_bank(tmp_path / "bank")


def test_gram_loss_is_zero_for_the_style_itself(bank_file, photos, vgg_weights, tmp_path):
    styles = read_bank(bank_file)
    targets = plan_targets(photos, styles, 2, 32, tmp_path / "t")
    paint_targets(targets, styles, 32)
    loss = StyleLoss(VggFeatures(vgg_weights()), styles, targets, 32)
    style = resized(styles[1].image, 32)[None]
    photo = torch.rand(1, 3, 32, 32)
    terms = loss(style, torch.tensor([1]), photo)
    assert float(terms["gram"]) < 1e-5
    assert float(terms["content"]) > 0.01
    other = torch.rand(1, 3, 32, 32).requires_grad_()
    terms = loss(other, torch.tensor([1]), photo)
    terms["gram"].backward()
    assert float(terms["gram"]) > 0.01
    assert other.grad.any()
    assert float(loss(photo, torch.tensor([1]), photo)["content"]) == 0


def test_the_second_stage_runs_with_vgg(bank_file, photos, small, vgg_weights, tmp_path):
    config = small.model_copy(update={"train": small.train.model_copy(update={"style_steps": 2})})
    data = BankData(read_bank(bank_file), photos, VggFeatures(vgg_weights()))
    train_bank(data, config, tmp_path / "bank")
    rows = read_jsonl(tmp_path / "bank" / "losses.jsonl")
    assert ["gram" in row for row in rows] == [False] * 6 + [True] * 2


def test_training_starts_from_a_bank(bank_file, photos, small, vgg_weights, tmp_path):
    data = BankData(read_bank(bank_file), photos, VggFeatures(vgg_weights()))
    first = train_bank(data, small, tmp_path / "first")
    more = {"init_from": str(tmp_path / "first"), "steps": 0, "style_steps": 1, "style_rate": 1e-9}
    config = small.model_copy(update={"train": small.train.model_copy(update=more)})
    again = train_bank(data, config, tmp_path / "again")
    for name, value in first.painter.state_dict().items():
        assert torch.allclose(value, again.painter.state_dict()[name], 2e-3, 1e-3), name
    rows = {"steps": 0, "style_crop": 24}
    train = config.train.model_copy(update=rows)
    train_bank(data, config.model_copy(update={"train": train}), tmp_path / "crops")
    larger = small.painter.model_copy(update={"residual": small.painter.residual + 1})
    with pytest.raises(UserError, match="other styles or sizes"):
        train_bank(data, config.model_copy(update={"painter": larger}), tmp_path / "other")


def test_learning_rates(small):
    options = small.train.model_copy(update={"warmup": 10, "steps": 100, "style_steps": 50})
    rates = [learning_rate(step, options) for step in range(1, 151)]
    assert rates[4] == pytest.approx(options.learning_rate / 2)
    assert max(rates) == rates[9] == options.learning_rate
    assert rates[100] == pytest.approx(options.style_rate / 10)
    assert max(rates[100:]) == rates[109] == options.style_rate
    assert rates[149] == pytest.approx(0, abs=1e-9)
