"""Every metric described, in the order of the reports."""

from eval.metrics.base import MetricInfo
from eval.metrics.drift import MAX_SHIFT, MIN_TILES, TILES_A_SIDE
from eval.metrics.embedding import PHOTO_TEXT, STYLED_TEXT
from eval.metrics.region import BAND_SHARE, CHANGE_THRESHOLD, SUCCESS_RATIO
from eval.metrics.style import CONTENT_LAYERS as VGG_LAYERS
from eval.metrics.style import GRAM_LAYERS, GRAM_SCALE, MATCH_BLOCKS, MATCH_LAYER, VIEW_SIDE
from regionroute.data.region_scores import MAP_BOUNDARY

GROUPS = {
    "rse": "components of the Regional Style Editing Score, with errors and attention maps",
    "vlm": "the four questions to a vision-language model",
    "aggregate": "one number from RSM and LPIPS_bg, always shown with both",
    "styleexpert": "the metrics of StyleExpert",
    "stylegallery": "the metrics of StyleGallery",
    "stylemamba": "the metrics of StyleMamba",
}

AGGREGATE = "rse_aggregate"
COMPONENTS = ("rsm", "lpips_bg")  # of the aggregate, which is never shown without them
SCORE_NOTE = (
    "The Regional Style Editing Score consists of components: style match (RSM), background LPIPS "
    "and background error on the one hand, the four questions to a judge on the other. The paper "
    f"defines no single number, and none of these stands for the others. `{AGGREGATE}` is an "
    "optional summary of our own."
)

_INFOS = [
    MetricInfo(
        "success", "Success", "higher", "share",
        "Success rate: share of edits whose residual error on the object is below one half.",
        f"1 where in_mask_ratio < {SUCCESS_RATIO}, else 0",
    ),
    MetricInfo(
        "in_mask_ratio", "Error left on the object", "lower", "share",
        "Residual error: the error on the object relative to that of the unedited image. 0 % is "
        "the exact target, 100 % is no better than no edit.",
        "in_mask_error of the edit / in_mask_error of the unedited image; NaN where the latter "
        "is 0",
    ),
    MetricInfo(
        "in_mask_error", "Object error", "lower", "value",
        "Squared distance between the edited object and its target.",
        "sum(M (edit - target)^2) / (3 sum(M)), images in [-1,1], M = union of the regions' "
        "masks",
    ),
    MetricInfo(
        "coverage", "Coverage", "higher", "share",
        "Share of the object's pixels that changed visibly.",
        "share of pixels in M whose largest channel difference from the unedited image is "
        f"> {CHANGE_THRESHOLD} in [0,1]",
    ),
    MetricInfo(
        "mse_bg", "Background error", "lower", "value",
        "Squared change of everything outside the object; 0 is no change.",
        "sum((1-M) (edit - source)^2) / (3 sum(1-M)), images in [-1,1]; NaN without background",
    ),
    MetricInfo(
        "mse_bg_unit", "Background error in [0,1]", "lower", "value",
        "The same background error with images in [0,1], a quarter of the other: for comparing "
        "with papers that use this range.",
        "mse_bg / 4: sum((1-M) (edit - source)^2) / (3 sum(1-M)), images in [0,1]",
    ),
    MetricInfo(
        "boundary_error", "Boundary error", "lower", "value",
        "Squared change of the background next to the object, where seams and halos appear.",
        "as mse_bg over the background pixels within r rows and columns of M, r = "
        f"{BAND_SHARE:.0%} of the shorter side, rounded, at least 1; images in [-1,1]",
    ),
    MetricInfo(
        "lpips_bg", "Background LPIPS", "lower", "value",
        "Perceptual change of the background, according to a vision network; 0 is no change.",
        "spatial LPIPS map (lpips package 0.1, AlexNet) between the source and the edit with the "
        "source pasted inside M, averaged over 1-M; NaN without background, and for changed "
        "images below 32 pixels",
        needs=("lpips",),
    ),
    MetricInfo(
        "leak", "Leak", "lower", "share",
        "Share of background pixels that changed visibly.",
        "share of pixels in 1-M whose largest channel difference from the unedited image is "
        f"> {CHANGE_THRESHOLD} in [0,1]",
    ),
    MetricInfo(
        "drift_shift", "Shift", "lower", "pixels",
        "Displacement of the whole background: editors that resize internally often return the "
        "image shifted by a few pixels.",
        "length of the centre's movement that, with a zoom, best fits the phase correlations "
        f"of square luma tiles (1/{TILES_A_SIDE} of the shorter side, half overlapping, Hann) "
        f"free of the object, each up to {MAX_SHIFT:.0%} of a tile, refined between pixels, "
        f"outliers excluded once; NaN with fewer than {MIN_TILES} tiles that correlate or tiles "
        "that disagree by more than a pixel",
    ),
    MetricInfo(
        "drift_zoom", "Zoom", "lower", "share",
        "How much the background was enlarged or shrunk; 0 % is unchanged.",
        "|scale - 1| of the same fit",
    ),
    MetricInfo(
        "attention_iou", "Attention IoU", "higher", "fraction",
        "Overlap of the style word's attention with the object: 1 is exact, 0 is none.",
        f"IoU of (region map > {MAP_BOUNDARY}) with the mask on the map's grid (cell mean >= .5, "
        "or the touched cells where that is empty); map file 8 bit, value / 256, averaged to the "
        "grid named in the edit's sidecar",
        needs=("map",),
    ),
    MetricInfo(
        "attention_share", "Attention on the object", "higher", "share",
        "Share of the style word's attention that falls on the object. Uniform attention gives the "
        "object's share of the image.",
        "sum(m A) / sum(A) over the map's grid, A = r / (1 - r) the attention relative to that at "
        "the map's boundary, at most the number of cells, r = the map file's level / 255, m = the "
        "part of the cell that is object",
        needs=("map",),
    ),
    MetricInfo(
        "rsm", "Style match (RSM)", "higher", "value",
        "How well the object matches the style's name, according to an image-text encoder. Its "
        "useful range is narrow: read it next to the floor and the ceiling.",
        "(1 + cos(image(crop), text('{style} style'))) / 2; crop = box of the mask padded by 5 % "
        "of its longer side, at least 8 pixels, clipped; mean over the regions",
        needs=("clip",),
    ),
    MetricInfo(
        AGGREGATE, "RSE aggregate", "higher", "fraction",
        "Style match on the object and preservation of the background in one number of our own: 0 "
        "for the unedited image, 1 for the target. Read it next to both components. It misses "
        "everything else: seams, shifts, how much of the object changed and where the attention "
        "lies; and it inherits the blind spots of the image-text encoder.",
        "sqrt(s p), s = (RSM(edit) - RSM(source)) / (RSM(target) - RSM(source)) clipped to [0,1], "
        "p = 1 - min(lpips_bg, 1); in [0,1]; NaN without background and where RSM(target) <= "
        "RSM(source); not in the paper, comparable only with the same encoder",
        "aggregate", ("clip", "lpips"),
    ),
    MetricInfo(
        "q1", "Q1: object in the style", "higher", "share",
        "Share of edits whose object is in the requested style, according to a vision-language "
        "model.",
        "yes-rate of question 1, unclear answers excluded and counted",
        "vlm", ("judge",),
    ),
    MetricInfo(
        "q2", "Q2: background in the style", "lower", "share",
        "Share of edits whose background is in that style too.",
        "yes-rate of question 2, unclear answers excluded and counted",
        "vlm", ("judge",),
    ),
    MetricInfo(
        "q3", "Q3: object in the opposite style", "lower", "share",
        "Share of edits whose object is in an opposite style.",
        "yes-rate of question 3 with the opposite of the judge's settings, unclear answers left "
        "out and counted",
        "vlm", ("judge",),
    ),
    MetricInfo(
        "q4", "Q4: background in the opposite style", "lower", "share",
        "Share of edits whose background is in an opposite style. Opposites are never "
        "photographic, so that an unedited photo counts as no.",
        "yes-rate of question 4 with the opposite of the judge's settings, unclear answers left "
        "out and counted",
        "vlm", ("judge",),
    ),
    MetricInfo(
        "clip_i", "CLIP-I", "higher", "fraction",
        "Similarity of edit and source to an image-text encoder.",
        "cos(image(edit), image(source))",
        "styleexpert", ("clip",),
    ),
    MetricInfo(
        "dino", "DINO", "higher", "fraction",
        "Similarity of edit and source to a network that is sensitive to shapes and materials; a "
        "wanted change of material lowers it too.",
        "cos of the class tokens of edit and source",
        "styleexpert", ("dino",),
    ),
    MetricInfo(
        "csd", "CSD", "higher", "fraction",
        "Similarity to the style images, according to a network trained on style.",
        "mean over the style's images of cos(style(edit), style(image))",
        "styleexpert", ("csd", "styles"),
    ),
    MetricInfo(
        "dreamsim", "DreamSim", "lower", "fraction",
        "Perceptual distance to the style images, trained on human judgements.",
        "mean over the style's images of the dreamsim package's ensemble distance",
        "styleexpert", ("dreamsim", "styles"),
    ),
    MetricInfo(
        "aesthetic", "Aesthetic", "higher", "value",
        "Predicted human rating of the image, about 1 to 10.",
        "LAION's head on the unit CLIP embedding of the edit",
        "styleexpert", ("clip", "aesthetic"),
    ),
    MetricInfo(
        "semantic", "Semantic style", "higher", "share",
        "Share of edits with the style image's textures and materials, according to a "
        "vision-language model. Our own wording: not comparable with published values.",
        "share of verdicts 'semantic' among semantic, color and neither, over the style's first "
        "image and the edited view; unclear answers excluded and counted",
        "styleexpert", ("judge", "styles"),
    ),
    MetricInfo(
        "semantic_color", "Colour only", "lower", "share",
        "Share of edits with the style image's colours only.",
        "share of verdicts 'color' of the same question",
        "styleexpert", ("judge", "styles"),
    ),
    MetricInfo(
        "gram", "Gram", "lower", "value",
        "Distance to the style images in texture statistics.",
        f"{GRAM_SCALE:.0f} x sum over {', '.join(GRAM_LAYERS)} of mean((G(edit) - G(image))^2), "
        f"G = F F^T / (C H W), views and images at {VIEW_SIDE}x{VIEW_SIDE}; least over the "
        "style's images",
        "stylegallery", ("vgg", "styles"),
    ),
    MetricInfo(
        "style_match", "Style", "higher", "fraction",
        "How well the edit's patches match patches of the style images, one to one.",
        f"mean cosine of {MATCH_LAYER} in {MATCH_BLOCKS}x{MATCH_BLOCKS} blocks at "
        f"{VIEW_SIDE}x{VIEW_SIDE}, matched with all images' blocks by the Hungarian method",
        "stylegallery", ("vgg", "styles"),
    ),
    MetricInfo(
        "lpips", "LPIPS", "lower", "value",
        "Perceptual change of the image, according to a vision network.",
        "lpips package 0.1, AlexNet, edit against source",
        "stylegallery", ("lpips",),
    ),
    MetricInfo(
        "clip_score", "CLIP score", "higher", "fraction",
        "How well the edit matches a sentence that names object and style.",
        f"cos(image(edit), text('{STYLED_TEXT}'))",
        "stylemamba", ("clip",),
    ),
    MetricInfo(
        "clip_directional", "Directional CLIP", "higher", "fraction",
        "Whether the edit changes the image in the direction in which the words change.",
        f"cos(image(edit) - image(source), text('{STYLED_TEXT}') - text('{PHOTO_TEXT}')); NaN "
        "where the image did not change",
        "stylemamba", ("clip",),
    ),
    MetricInfo(
        "ssim", "SSIM", "higher", "fraction",
        "How much of the source's structure is preserved.",
        "torchmetrics' SSIM map, Gaussian window of 11 pixels (sigma 1.5), channels apart, data "
        "range 1, averaged where the window lies inside; NaN below 11 pixels",
        "stylemamba",
    ),
    MetricInfo(
        "vgg_content", "VGG content", "lower", "value",
        "Distance of edit and source in deep layers of a vision network.",
        f"sum over {' and '.join(VGG_LAYERS)} of the mean squared difference of edit and source, "
        f"at {VIEW_SIDE}x{VIEW_SIDE}, ImageNet-normalised",
        "stylemamba", ("vgg",),
    ),
]  # fmt: skip
CATALOGUE: dict[str, MetricInfo] = {info.name: info for info in _INFOS}
MAP_METRICS = ("attention_iou", "attention_share")
