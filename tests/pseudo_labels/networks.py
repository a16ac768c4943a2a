"""Small random networks of the real classes, saved as folders: plumbing, no skill."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ["a", "an", "dog", "cat", "apple", ".", "yes", "no", "is", "this", "?", "<image>"]


def word_tokenizer(*extra, **tokens):
    """A fast tokenizer of whole words."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *extra]
    tokenizer = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]",
        bos_token="[CLS]",
        **tokens,
    )


def _save(folder, *parts):
    for part in parts:
        part.save_pretrained(folder)
    return Path(folder)


def save_sam(folder):
    """SAM of transformers."""
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

    torch.manual_seed(0)
    size = {"image_size": 64, "patch_size": 16}
    config = SamConfig(
        vision_config=dict(
            hidden_size=24, output_channels=16, num_hidden_layers=2, num_attention_heads=2,
            global_attn_indexes=[1], window_size=2, num_pos_feats=8, mlp_dim=32, **size,
        ),
        prompt_encoder_config=dict(hidden_size=16, mask_input_channels=4, **size),
        mask_decoder_config=dict(
            hidden_size=16, mlp_dim=32, num_hidden_layers=1, num_attention_heads=2,
            iou_head_hidden_dim=16,
        ),
    )  # fmt: skip
    processor = SamProcessor(
        SamImageProcessor(
            size={"longest_edge": 64},
            pad_size={"height": 64, "width": 64},
            mask_size={"longest_edge": 16},
            mask_pad_size={"height": 16, "width": 16},
        )
    )
    return _save(folder, SamModel(config), processor)


def save_sam2(folder):
    """SAM 2 of transformers."""
    from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model, Sam2Processor

    torch.manual_seed(0)
    config = Sam2Config(
        vision_config=dict(
            backbone_config=dict(
                model_type="sam2_hiera_det_model", hidden_size=8, num_attention_heads=1,
                image_size=[64, 64], blocks_per_stage=[1, 1, 2, 1],
                embed_dim_per_stage=[8, 16, 32, 64], num_attention_heads_per_stage=[1, 1, 2, 2],
                window_size_per_stage=[8, 4, 4, 4], global_attention_blocks=[3],
                window_positional_embedding_background_size=[4, 4],
            ),
            backbone_channel_list=[64, 32, 16, 8],
            backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
            fpn_hidden_size=16,
        ),
        prompt_encoder_config=dict(
            hidden_size=16, image_size=64, patch_size=16, mask_input_channels=4
        ),
        mask_decoder_config=dict(
            hidden_size=16, mlp_dim=32, num_hidden_layers=1, num_attention_heads=2,
            iou_head_hidden_dim=16,
        ),
    )  # fmt: skip
    square = {"height": 64, "width": 64}
    processor = Sam2Processor(
        Sam2ImageProcessor(size=square, mask_size={"height": 16, "width": 16})
    )
    return _save(folder, Sam2Model(config), processor)


def save_grounding_dino(folder):
    """Grounding DINO."""
    from transformers import (
        BertConfig,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        ResNetConfig,
    )

    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    config = GroundingDinoConfig(
        backbone_config=ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1],
            layer_type="basic", out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=BertConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=64,
        ),
        num_queries=8, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        encoder_attention_heads=2, decoder_attention_heads=2, d_model=32, max_text_len=64,
        disable_custom_kernels=True,
    )  # fmt: skip
    size = {"shortest_edge": 64, "longest_edge": 96}
    processor = GroundingDinoProcessor(GroundingDinoImageProcessor(size=size), tokenizer)
    return _save(folder, GroundingDinoForObjectDetection(config), processor)


def save_owlv2(folder):
    """OWLv2."""
    from transformers import (
        Owlv2Config,
        Owlv2ForObjectDetection,
        Owlv2ImageProcessor,
        Owlv2Processor,
    )

    torch.manual_seed(0)
    tokenizer = word_tokenizer(model_max_length=16)
    shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    config = Owlv2Config(
        text_config=dict(
            vocab_size=len(tokenizer), bos_token_id=2, eos_token_id=3, pad_token_id=0, **shape
        ),
        vision_config=dict(image_size=64, patch_size=16, **shape),
        projection_dim=16,
    )
    processor = Owlv2Processor(Owlv2ImageProcessor(size={"height": 64, "width": 64}), tokenizer)
    return _save(folder, Owlv2ForObjectDetection(config), processor)


def save_sam3(folder):
    """SAM 3, words to masks."""
    from transformers import Sam3Config, Sam3ImageProcessor, Sam3Model, Sam3Processor

    torch.manual_seed(0)
    tokenizer = word_tokenizer(model_max_length=32)
    small = dict(hidden_size=32, num_attention_heads=2)
    config = Sam3Config(
        vision_config=dict(
            backbone_config=dict(
                model_type="sam3_vit_model", hidden_size=32, intermediate_size=32,
                num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14,
                window_size=2, global_attn_indexes=[1], pretrain_image_size=56,
            ),
            fpn_hidden_size=32,
            backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        ),
        text_config=dict(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, projection_dim=32, max_position_embeddings=32,
            bos_token_id=2, eos_token_id=3, pad_token_id=0,
        ),
        geometry_encoder_config=dict(num_layers=1, intermediate_size=32, **small),
        detr_encoder_config=dict(num_layers=1, intermediate_size=32, **small),
        detr_decoder_config=dict(num_layers=1, num_queries=6, intermediate_size=32, **small),
        mask_decoder_config=dict(num_upsampling_stages=3, **small),
    )  # fmt: skip
    square = {"height": 56, "width": 56}
    processor = Sam3Processor(
        Sam3ImageProcessor(size=square, mask_size={"height": 16, "width": 16}), tokenizer
    )
    return _save(folder, Sam3Model(config), processor)


def _picture_processor(kind):
    """A processor that scales to 28 px."""
    import transformers

    square = {"height": 28, "width": 28}
    return getattr(transformers, kind)(size=square, crop_size=square)


_VISION = dict(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    image_size=28, patch_size=14,
)  # fmt: skip


def save_siglip(folder):
    """SigLIP, pictures and words."""
    from transformers import SiglipConfig, SiglipModel, SiglipProcessor

    torch.manual_seed(0)
    tokenizer = word_tokenizer(model_max_length=16)
    config = SiglipConfig(
        text_config=dict(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=16, projection_size=16,
        ),
        vision_config=_VISION,
    )  # fmt: skip
    processor = SiglipProcessor(_picture_processor("SiglipImageProcessor"), tokenizer)
    return _save(folder, SiglipModel(config), processor)


def save_dinov2(folder):
    """DINOv2, pictures only."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    square = {"height": 28, "width": 28}
    config = Dinov2Config(**{key: v for key, v in _VISION.items() if key != "intermediate_size"})
    processor = BitImageProcessor(size=square, crop_size=square)
    return _save(folder, Dinov2Model(config), processor)


TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}"
)


def save_llava(folder, chat_template=TEMPLATE):
    """LLaVA: a vision-language model."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    torch.manual_seed(0)
    tokenizer = word_tokenizer(additional_special_tokens=["<image>"])
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_VISION),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=256,
            bos_token_id=2, eos_token_id=3, pad_token_id=0,
        ),
        image_token_index=image_token,
        vision_feature_layer=-1,
    )  # fmt: skip
    processor = LlavaProcessor(
        _picture_processor("CLIPImageProcessor"),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=chat_template,
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    return _save(folder, LlavaForConditionalGeneration(config), processor)


def save_stable_diffusion(folder):
    """A Stable Diffusion pipeline of text to image."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    from regionroute.models.tokenizers import build_clip_tokenizer

    torch.manual_seed(0)
    tokenizer = build_clip_tokenizer([*WORDS, "picture", "in", "neon", "style"], 77)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=77, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=16, in_channels=4,
        out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16,
        attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
        sample_size=32,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return _save(folder, pipeline)
