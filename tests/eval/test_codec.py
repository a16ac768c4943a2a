import json

import pytest
import torch

from eval import codec
from eval.report.html import split_notes
from eval.sources import load_source
from regionroute.data.manifest import load_manifest


class Blur:
    """An autoencoder that loses a known amount: everything moves towards grey."""

    def __init__(self, loss=0.1, size=None):
        self.loss = loss
        self.size = size
        self.seen = []

    def encode_images(self, images):
        self.seen.append(tuple(images.shape))
        return images * 2 - 1

    def decode_latents(self, latents):
        return (latents * (1 - self.loss) + 1) / 2

    def fit_size(self, height, width):
        return self.size or (height, width)


@pytest.fixture
def sources(tiny_manifest):
    manifest = load_manifest(tiny_manifest)
    return [load_source(manifest, n, sample) for n, sample in enumerate(manifest.samples)]


def test_round_trip_numbers_follow_from_the_loss(sources):
    rows = codec.measure(Blur(0.1), sources, batch_size=3)
    for row, source in zip(rows, sources, strict=True):
        outside = source.mask[0] == 0
        x = source.content.double() * 2 - 1
        assert row["mse_bg"] == pytest.approx((0.01 * x[:, outside] ** 2).mean().item(), rel=1e-4)
        mse = (0.01 * x**2).mean().item() / 4  # in [0,1]
        assert row["psnr_context"] == pytest.approx(
            -10 * torch.tensor(mse).log10().item(), rel=1e-4
        )
        y = source.target.double() * 2 - 1
        inside = ~outside
        error = (0.01 * y[:, inside] ** 2).mean() / ((x - y)[:, inside] ** 2).mean()
        assert row["in_mask_ratio"] == pytest.approx(error.item(), rel=1e-4)


def test_an_exact_codec_has_nothing_left(sources):
    rows = codec.measure(Blur(0.0), sources)
    assert {row["psnr_context"] for row in rows} == {codec.MAX_PSNR}
    # (2x − 1 + 1) / 2 is x up to the last bit of float32.
    assert all(row["mse_bg"] < 1e-12 and row["in_mask_ratio"] < 1e-12 for row in rows)
    assert all(row["leak"] == 0 for row in rows)


def test_slices_are_all_and_each_style(sources):
    rows = codec.measure(Blur(), sources)
    rows[0]["flags"] = ["single"]
    summary = codec.summarise(rows)
    assert list(summary) == [
        *("all", "size:large", "count:one", "flag:single", "style:line-art", "style:pixel-art")
    ]
    assert summary["flag:single"]["mse_bg"]["n"] == 1
    assert summary["all"]["mse_bg"]["n"] == 4
    assert summary["style:pixel-art"]["psnr_target"]["n"] == 2
    assert set(summary["all"]) == set(codec.DEFINITIONS)
    assert summary["all"]["in_mask_relative"]["mean"] > 0


def test_resizing_is_part_of_the_trip(sources):
    blur = Blur(0.0, size=(32, 32))
    images = torch.rand(2, 3, 64, 48)
    back = codec.round_trip(blur, images)
    assert blur.seen == [(2, 3, 32, 32)]
    assert back.shape == images.shape
    assert codec.psnr(back, images).max() < 30
    assert back.min() >= 0
    assert back.max() <= 1


def test_the_command_on_a_real_kontext_folder(tiny_base, tiny_manifest, tmp_path, capsys):
    out = tmp_path / "codec.json"
    arguments = ["--base", str(tiny_base), "--manifest", str(tiny_manifest), "--split", "all"]
    (tiny_manifest / "0.context.png").unlink()
    assert codec.main([*arguments, "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["samples"] == 3
    assert split_notes([{"codec": result}])[1] == result
    printed = capsys.readouterr()
    assert "psnr_context" in printed.out
    assert "skipped" in printed.err
    assert codec.main([*arguments, "--out", str(out), "--base", "./nowhere"]) == 2
    assert codec.main([*arguments, "--out", str(out), "--split", "none"]) == 2
    assert "nowhere" in capsys.readouterr().err
