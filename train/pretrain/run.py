"""Make an embedded base: fit its codec, pre-train its transformer and text encoders, save it.

    regionroute scenes --pretrain 8000 --out data/corpus
    python train/pretrain/run.py --config configs/nano_pretrain.yaml

    regionroute bank --labels PHOTOS/labels.jsonl --styles small_photos --out data/bank
    regionroute bank --labels PHOTOS/labels.jsonl --styles small_paintings --out data/bank
    python train/pretrain/run.py --config configs/nano_photos_pretrain.yaml

The result is a diffusers Kontext folder, `<output>/base`. A stopped run resumes from its newest
checkpoint when the same command is started again.
"""

import os
from pathlib import Path
from typing import Any

# Idle CPU threads sleep instead of spinning, see train/run.py. Read once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from torch import Tensor

from regionroute.config.io import dump_config
from regionroute.data.object_bank import ObjectBank
from regionroute.errors import UserError, command
from regionroute.models.backbone import Backbone
from regionroute.models.codec import PatchCodec
from regionroute.models.loading import load_base
from train.engine.single_process import run_training
from train.pretrain.base import PairSource, train_base
from train.pretrain.config import PretrainConfig
from train.pretrain.corpus import load_corpus, to_model_range
from train.pretrain.image_encoder.file import load_image_encoder
from train.pretrain.model import NanoModel, new_parts, parts_of, save_base, vocabulary
from train.pretrain.sources import PhotoSource, SceneSource, bank_pictures, prompts_of
from train.pretrain.word_table import word_table


@command
def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_training("train/pretrain/run.py", __doc__, PretrainConfig, argv, pretrain)


def pretrain(cfg: PretrainConfig, output: Path) -> None:
    """Trains a base and saves it in the folder `output`."""
    if cfg.corpus.bank is not None:
        _pretrain_on_photos(cfg, output)
        return
    base = None if cfg.init_from is None else load_base(cfg.init_from)
    corpus = load_corpus(cfg.corpus, output / "pictures.pt")
    stride = max(1, len(corpus.pictures) // cfg.codec.pictures)
    codec = fit_codec(cfg, corpus.pictures[::stride], base)
    model = _model(cfg, corpus.prompts, output, codec, base)
    _train(cfg, model, codec, SceneSource(cfg.base, corpus, codec, model, cfg.seed), output)


def _pretrain_on_photos(cfg: PretrainConfig, output: Path) -> None:
    base = None if cfg.init_from is None else load_base(cfg.init_from)
    bank = ObjectBank(str(cfg.corpus.bank))
    codec = fit_codec(cfg, bank_pictures(bank, cfg.codec.pictures), base)
    model = _model(cfg, prompts_of(bank), output, codec, base)
    _train(cfg, model, codec, PhotoSource(cfg, codec, model), output)


def _model(
    cfg: PretrainConfig, prompts: list[str], output: Path, codec: PatchCodec, base: Backbone | None
) -> NanoModel:
    channels, semantic = codec.config.latent_channels, codec.config.semantic_channels
    if base is not None:
        parts = parts_of(base, cfg.model, channels)
    else:
        words = vocabulary(prompts, cfg.model.words)
        encoder = cfg.model.sentence_encoder
        table = None if encoder is None else word_table(encoder, words, cfg.model.text_dim, output)
        parts = new_parts(cfg.model, channels, words, table, semantic)
    return NanoModel(parts, cfg.model.text_length, cfg.base.alignment)


def _train(
    cfg: PretrainConfig, model: NanoModel, codec: PatchCodec, source: PairSource, output: Path
) -> None:
    train_base(cfg, model, codec, source, output)
    save_base(model, codec, output / "base", cfg, _card(cfg))
    print(f"base saved in {output / 'base'}")


def fit_codec(cfg: PretrainConfig, pictures: Tensor, base: Backbone | None) -> PatchCodec:
    """The codec: fitted to uint8 images [P,3,S,S], or as far as there is one that of `base`.

    Raises:
        UserError: the image encoder cannot be read, or the base has another codec.
    """
    before = None if base is None else base.vae
    if before is not None and before.pixel_channels != cfg.codec.latent_channels:
        raise UserError(
            f"init_from={cfg.init_from}: its codec has {before.pixel_channels} channels, set "
            f"codec.latent_channels, now {cfg.codec.latent_channels}, to that"
        )
    path = cfg.codec.image_encoder
    image_encoder = None if path is None else load_image_encoder(path)
    if before is not None and image_encoder is None:
        return before
    sizes: dict[str, Any] = {}
    semantic = 0
    if image_encoder is not None:
        semantic = image_encoder.sizes["channels"] // 4
        sizes = {
            "encoder_width": image_encoder.sizes["width"],
            "word_channels": image_encoder.sizes["words"],
            "vocabulary": image_encoder.vocabulary,
            "encoder_zoom": image_encoder.sizes["zoom"],
        }
    codec = PatchCodec(
        latent_channels=cfg.codec.latent_channels + semantic, semantic_channels=semantic, **sizes
    )
    if before is None:
        codec.fit(to_model_range(pictures))
    else:
        codec.take_pixels(before)
    codec.image_encoder = image_encoder
    return codec.eval().requires_grad_(False)


def _card(cfg: PretrainConfig) -> str:
    seen = "photos and compositions of them" if cfg.corpus.bank else "procedural scenes"
    return (
        "# nano\n\nA small Kontext base of the stock diffusers classes, pre-trained by "
        f"`train/pretrain/run.py` on {seen}: it copies, restyles whole images, recolours "
        "and highlights named objects. It has never seen a restyled region.\n\nConfiguration:\n\n"
        "```yaml\n" + dump_config(cfg) + "\n```\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
