"""``regionroute edit``: one image, a file of rows, or a split of a manifest."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from regionroute.cli.edit_arguments import check_arguments, parser
from regionroute.cli.options import device_of, engine_of
from regionroute.cli.start import import_pipeline
from regionroute.errors import UserError, command, printable
from regionroute.models.devices import pick_device
from regionroute.remote import staged

if TYPE_CHECKING:
    from regionroute.editing.batch import Job, Jobs
    from regionroute.editing.editor import Editor
    from regionroute.pipeline import RegionRoutePipeline


@command
@staged
def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: arguments, None for the process's own.

    Returns:
        0, or 1 when some rows failed; they are listed on stderr, as are the warnings of all rows.

    Raises:
        UserError: anything the user has to fix before an edit can be made.
    """
    args = parser().parse_args(argv)
    check_arguments(args)
    import_pipeline()
    try:
        return _edit_one(args) if args.image else _edit_many(args)
    except RuntimeError as error:
        if "out of memory" not in str(error) and "allocate memory" not in str(error):
            raise
        raise UserError(
            "not enough memory: lower --batch-size, or use --dtype bfloat16, --no-sparse, "
            "another --device or a smaller --base"
        ) from None


def _edit_one(args: argparse.Namespace) -> int:
    from torch import Tensor
    from tqdm import tqdm

    from regionroute.data.images import open_image, read_image, read_soft_mask
    from regionroute.editing.outputs import Destination, check_destination, write_edit
    from regionroute.remote import with_urls

    loaded = open_image(args.image)
    image = loaded.rgb
    size = image.shape[-2], image.shape[-1]
    destination = Destination(args.out, args.map, args.side_by_side)
    inputs = [args.image, *(args.region_map or ()), *(args.style_image or ())]
    check_destination(destination, inputs + _map_file(args))
    regions = [read_soft_mask(path, size)[0] for path in args.region_map or ()]
    style_images = [read_image(path) for path in args.style_image or ()]
    pipe = _load(args, bool(args.style_image))
    steps = args.steps or pipe.backbone.settings.steps
    # The delay keeps an empty bar from being drawn before a request is refused.
    with tqdm(total=steps, desc="edit", unit="step", disable=None, delay=0.01) as bar:

        def advance(pipe: RegionRoutePipeline, step: int, time: Tensor, tensors: object) -> None:
            bar.update()

        out = pipe(
            image,
            args.object or [""],
            () if style_images else args.style or [""],
            style_image=style_images or None,
            prompt=args.prompt,
            strength=args.strength,
            region_mask=regions or None,
            mode=args.mode,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance,
            seed=args.seed,
            instance=args.instance,
            lock_background=args.lock_background,
            refine_crop=args.refine_crop,
            sparse=args.sparse,
            sparse_quality=args.sparse_quality,
            force=args.force,
            callback_on_step_end=advance,
            output_region_maps=destination.wants_map,
            output_type="pt",
        )
    [edited], [region_map], [metadata] = out.images, out.region_maps, out.metadata
    assert isinstance(edited, Tensor)
    assert region_map is None or isinstance(region_map, Tensor)
    facts = {"image": with_urls(str(args.image))}
    if style_images:
        facts["style_image"] = with_urls(", ".join(map(str, args.style_image)))
    write_edit(
        destination, loaded, edited, region_map, facts | metadata,
        keep_exif=args.keep_exif, regions=regions,
    )  # fmt: skip
    for note in loaded.notes:
        print(printable(f"note: {args.image}: {note}"), file=sys.stderr)
    for warning in metadata.get("warnings", []):
        print(f"warning: {printable(warning)}", file=sys.stderr)
    for name, cosine in metadata.get("nearest_trained_style", []):
        print(
            printable(f"style image: most like {name} of the trained styles, cosine {cosine:.2f}")
        )
    prompts = metadata["prompt"]
    shown = prompts if isinstance(prompts, str) else " | ".join(prompts)
    print(printable(f"{args.out}: {shown}"))
    return 0


def _map_file(args: argparse.Namespace) -> list[Path]:
    """The file of --map-from, where it is one and not a list of sites."""
    return [Path(args.map_from)] if args.map_from and os.path.isfile(args.map_from) else []


def _edit_many(args: argparse.Namespace) -> int:
    from regionroute.editing.batch import manifest_rows, read_rows, run_jobs
    from regionroute.editing.request import EditOptions

    jobs: Jobs
    if args.batch:
        jobs = read_rows(args.batch, args.seed)
    else:
        jobs = manifest_rows(args.manifest, args.split or "test", args.out_dir, args.seed)
    skipped = jobs.drop_existing() if args.skip_existing else 0
    written = 0
    if jobs.jobs:
        names = [field.name for field in fields(EditOptions)]
        options = EditOptions(**{name: getattr(args, name) for name in names})
        size, engine = args.batch_size or 8, engine_of(args)
        if engine.on_ray:
            args.device = device_of(args)
        for by_example, some in _by_experts(jobs.jobs, args).items():
            jobs.jobs = some
            load = functools.partial(_editor, args, by_example)
            written += run_jobs(load, jobs, options, size, args.keep_exif, engine)
    found = f"failed {len(jobs.problems)}, warnings {len(jobs.warnings)}"
    print(f"edited {written}, skipped {skipped}, {found}")
    lines = {"note": jobs.notes, "warning": jobs.warnings, "error": jobs.problems}
    for kind, sentences in lines.items():
        for sentence in sentences:
            print(f"{kind}: {printable(sentence)}", file=sys.stderr)
    return 1 if jobs.problems else 0


def _by_experts(jobs: list[Job], args: argparse.Namespace) -> dict[bool, list[Job]]:
    """Jobs for packaged experts by name (False) and by example (True), or all for given ones."""
    if args.experts or args.zero_shot:
        return {False: jobs}
    # Those by example first: not every base has them, and that is better told before any edit.
    groups = {
        kind: [job for job in jobs if (job.style_image is not None) == kind]
        for kind in (True, False)
    }
    return {kind: some for kind, some in groups.items() if some}


def _editor(args: argparse.Namespace, by_example: bool) -> Editor:
    """The model of a process that edits many images."""
    return _load(args, by_example).editor


def _load(args: argparse.Namespace, by_example: bool) -> RegionRoutePipeline:
    import torch

    from regionroute.editing.expert_settings import read_choice
    from regionroute.models.bundled import bundled_experts, default_base
    from regionroute.pipeline import RegionRoutePipeline

    # What is wrong with these is reported before a large base is loaded.
    choice = read_choice(args.map_from) if args.map_from else None
    kind = "by_example" if by_example else "auto"
    experts = None if args.zero_shot else args.experts or kind
    base = args.base or default_base(experts)
    if experts == kind:
        experts = bundled_experts(base, by_example=by_example)
    pipe = RegionRoutePipeline.from_pretrained(
        base,
        experts=experts,
        torch_dtype=getattr(torch, args.dtype),
        quantize=args.quantize,
        revision=args.revision,
        device=pick_device(args.device),
    )
    if choice:
        pipe.editor.read_maps(choice, "--map-from")
    pipe.editor.attend_by(args.attention_backend)
    return pipe


if __name__ == "__main__":
    raise SystemExit(main())
