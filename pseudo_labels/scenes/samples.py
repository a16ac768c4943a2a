"""Samples of a scene: words, masks and exactly styled targets, written to a data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pseudo_labels.compose import composite
from pseudo_labels.job import BuiltStyle, write_once
from pseudo_labels.scenes import draw as scenes
from pseudo_labels.scenes import sprites
from pseudo_labels.scenes.draw import Scene, render_scene
from regionroute.data.images import write_image
from regionroute.data.manifest import WHOLE, EditSample, Region, mask_box
from regionroute.data.prompts import build_prompt, find_spans, restyle_prompt
from regionroute.engines.local import one_thread
from regionroute.files import settings_hash

STYLE_IMAGES = "styles"  # folder of restyled scenes: split/style/scene.png
_REVISION = 2  # raise when this module would choose other words or make other targets


@dataclass(frozen=True)
class SceneJob:
    """One scene to render: its position in its split, its seed and the split."""

    position: int
    seed: int
    split: str


@dataclass(frozen=True)
class SceneSettings:
    """Settings shared by all scenes of a data set.

    Attributes:
        size: side of the images in pixels.
        styles: the styles.
        one_style: one style per scene, in turn, instead of all.
        style_images: also write whole restyled scenes, as style references.
        pairs: number of restyled words of a sample, each in its own style.
        whole: add training samples of whole restyled scenes.
    """

    size: int
    styles: tuple[BuiltStyle, ...]
    one_style: bool = False
    style_images: bool = False
    pairs: int = 1
    whole: bool = False

    @property
    def key(self) -> str:
        """Hash of everything that decides the images, including the drawing code."""
        named = [[style.entry.spec, style.stylizer.fingerprint] for style in self.styles]
        code = [scenes.REVISION, sprites.REVISION]
        return settings_hash([_REVISION, self.size, named, code])


def render_samples(job: SceneJob, out: Path, settings: SceneSettings) -> list[EditSample]:
    """Render one scene and its targets into `out`.

    The prompt names one word of the scene, drawn by its seed; partly occluded objects are
    preferred, since they are rare and difficult. All objects of that word are restyled
    and in the mask.

    Args:
        job: the scene.
        out: folder of the data set.
        settings: size and styles.

    Returns:
        One sample per style.
    """
    with one_thread():
        scene = render_scene(job.seed, settings.size)
        words = _named_words(scene, job.seed, settings.pairs)
        masks = [f"masks/{job.seed}.png", *(f"masks/{job.seed}-{word}.png" for word in words[1:])]
        write_once(out / "images" / f"{job.seed}.png", scene.image)
        for word, mask in zip(words, masks, strict=True):
            write_once(out / mask, scene.mask(word))
        styles = settings.styles
        starts = range(len(styles))
        if settings.one_style:
            starts = range(job.position % len(styles), job.position % len(styles) + 1)
        samples = []
        for start in starts:
            pairs = [(word, styles[(start + i) % len(styles)]) for i, word in enumerate(words)]
            sample = _sample(job, scene, pairs, masks)
            samples.append(sample)
            _write_target(job, scene, pairs, out / sample.target, out, settings)
            if settings.whole and job.split == "train":
                samples.append(_whole_sample(job, scene, pairs[0][1], out))
    return samples


def _whole_sample(job: SceneJob, scene: Scene, style: BuiltStyle, out: Path) -> EditSample:
    """The whole scene restyled: one region, named "image", that covers everything."""
    spec, mask = style.entry.spec, f"masks/{job.seed}-whole.png"
    everything = torch.ones_like(scene.image[:1])
    write_once(out / mask, everything)
    text = restyle_prompt(spec.words)
    spans = find_spans(text, "image", spec.words)
    region = Region("image", spec.name, mask, mask_box(everything), 1.0, *spans)
    return EditSample(
        id=f"scene-{job.seed}-{spec.name}-whole",
        context=f"images/{job.seed}.png",
        target=f"{STYLE_IMAGES}/{job.split}/{spec.name}/{job.seed}.png",
        regions=(region,),
        prompt=text,
        split=job.split,
        flags=(WHOLE,),
        provenance={"scene_seed": job.seed, "stylizer": style.entry.stylizer},
    )


def _named_words(scene: Scene, seed: int, count: int) -> list[str]:
    """Words that the prompt names, an occluded one first; fewer if the scene has fewer."""
    hidden = [word for word in scene.words() if "occluded" in scene.flags(word)]
    words = hidden or scene.words()
    # A separate random stream: the drawing must not depend on the choice of the word.
    first = words[np.random.default_rng([seed, 2]).integers(len(words))]
    return [first, *(word for word in scene.words() if word != first)][:count]


def _write_target(
    job: SceneJob,
    scene: Scene,
    pairs: Sequence[tuple[str, BuiltStyle]],
    target: Path,
    out: Path,
    settings: SceneSettings,
) -> None:
    """Write the target, and the whole restyled scene if requested; existing files are kept."""
    whole = out / STYLE_IMAGES / job.split / pairs[0][1].entry.spec.name / f"{job.seed}.png"
    asked = settings.style_images or (settings.whole and job.split == "train")
    wanted = asked and not whole.exists()
    if not wanted and target.exists():
        return
    result = scene.image
    for i, (word, style) in enumerate(pairs):
        styled = style.stylizer.stylize(scene.image, style.entry.spec)
        if wanted and i == 0:
            write_image(whole, styled)
        result = composite(result, styled, scene.mask(word))
    write_image(target, result)


def _sample(
    job: SceneJob, scene: Scene, pairs: Sequence[tuple[str, BuiltStyle]], masks: Sequence[str]
) -> EditSample:
    specs = [style.entry.spec for _, style in pairs]
    prompt = build_prompt(
        [(word, spec.words) for (word, _), spec in zip(pairs, specs, strict=True)]
    )
    regions = tuple(
        Region(
            object=word,
            style=specs[i].name,
            mask=masks[i],
            box=mask_box(scene.mask(word)),
            object_span=prompt.object_spans[i],
            style_span=prompt.style_spans[i],
        )
        for i, (word, _) in enumerate(pairs)
    )
    name = f"{job.seed}-{'+'.join(spec.name for spec in specs)}"
    flags = dict.fromkeys(flag for word, _ in pairs for flag in scene.flags(word))
    return EditSample(
        id=f"scene-{name}",
        context=f"images/{job.seed}.png",
        target=f"targets/{name}.png",
        regions=regions,
        prompt=prompt.text,
        split=job.split,
        flags=tuple(flags),
        provenance={"scene_seed": job.seed, "stylizer": pairs[0][1].entry.stylizer},
    )
