"""Tables of docs/measured that are about metrics, labels and speed."""

from __future__ import annotations

from table_text import by_columns, cell, number, result, table


def wrong_edits() -> str:
    """Failure modes by the metrics that should flag them."""
    columns = [
        ("residual error", "in_mask_ratio", "%"),
        ("coverage", "coverage", "%"),
        ("background LPIPS", "lpips_bg", ".3"),
        ("leak", "leak", "%"),
        ("shift, px", "drift_shift", ".1"),
        ("Style", "style_match", ".2"),
    ]
    names = {
        "floor": ("floor: unedited",),
        "global_restyle": ("whole image restyled",),
        "shifted": ("shifted by 3 px",),
        "wrong_object": ("another object restyled",),
        "half_coverage": ("half of the object restyled",),
        "ceiling": ("ceiling: the target",),
    }
    rows = {
        name: {key: value[0] if value else None for key, value in row.items()}
        for name, row in result("eval_wrong_edits")["means"].items()
    }
    return by_columns(rows, columns, names)


def rehearsals() -> str:
    """Time and memory of the stages at full size, against the plan."""
    heads = ["base", "stage", "time", "peak", "of it not mapped from files", "plan", "peak / plan"]
    body = []
    for one in result("rehearsal")["rehearsals"]:
        settings = one["settings"]
        name = f"{settings['name']}, {settings['quantize'] or 'bf16'}"
        for stage, row in one["stages"].items():
            planned, ratio = row["planned"], row["peak over planned"]
            body.append(
                [
                    name,
                    f"`{stage}`",
                    f"{row['seconds']:.0f} s",
                    f"{row['peak'] / 1e9:.2f} GB",
                    "" if row["own"] is None else f"{row['own'] / 1e9:.2f} GB",
                    "" if planned is None else f"{planned / 1e9:.2f} GB",
                    "" if ratio is None else f"{ratio:.2f}",
                ]
            )
    return table(heads, body)


def sparse_speed() -> str:
    """Dense over region-sparse time of a whole sampling."""
    rows = result("region_sparse")["rows"]
    areas = list(rows[0]["sampling_ratio"]["28"])
    body = [
        [
            f"{row['base']}, {row['resolution']:,} px",
            steps,
            *(f"{row['sampling_ratio'][steps][area]:.2f}" for area in areas),
        ]
        for row in rows
        for steps in row["sampling_ratio"]
    ]
    return table(["base", "steps", *areas], body)


def sparse_levels() -> str:
    """The error and the speed of each `--sparse-quality`."""
    rows = {"fast": "region-sparse, fast", "balanced": "region-sparse"}
    rows["high"] = "region-sparse, high"
    runs = result("region_sparse_quality")["runs"]
    speeds = [row for row in result("region_sparse")["rows"] if row["resolution"] == 1024]
    heads = ["quality", "speed, 28 steps", "speed, 4 steps"]
    heads += [f"{run['base']}, {run['steps']} steps" for run in runs]
    body = [
        [
            level,
            *(
                " and ".join(f"{row['quality_ratio'][level][steps]['20%']:.2f}" for row in speeds)
                for steps in ("28", "4")
            ),
            *(
                f"{run['methods'][name]['psnr']:.1f} ({run['methods'][name]['psnr_10']:.1f})"
                for run in runs
            ),
        ]
        for level, name in rows.items()
    ]
    return table(heads, body)


def sparse_quality() -> str:
    """Region-sparse edits and other schemes against the dense edit."""
    heads = [
        "base, steps", "scheme", "tokens computed", "in the last step", "time ratio",
        "PSNR on the object, dB", "10th percentile", "residual error, points", "background exact",
    ]  # fmt: skip
    body = [
        [
            f"{run['base']}, {run['steps']}",
            f"**{name}**" if name == "region-sparse" else name,
            number(row["share"], "%"),
            number(row["share_last"], "%") if "share_last" in row else "",
            f"{row['time_ratio']:.2f}",
            f"{row['psnr']:.1f}",
            f"{row['psnr_10']:.1f}",
            cell(row["residual"], "%.1", signed=True),
            "yes" if row["background_exact"] else "no",
        ]
        for run in result("region_sparse_quality")["runs"]
        for name, row in run["methods"].items()
    ]
    return table(heads, body)


def taught() -> str:
    """Styles that nobody tuned `teach` for."""
    heads = ["style", "minutes", "edits", "region by", "success", "residual error", "LPIPS left"]
    keys = ("success", "in_mask_ratio", "lpips_ratio")
    body = [
        [style, f"{row['minutes']:.1f}", str(row[how]["success"]["n"]), how]
        + [cell(row[how][key], "%") for key in keys]
        for style, row in result("teach")["styles"].items()
        for how in ("routed", "true mask")
    ]
    return table(heads, body)


def masks() -> str:
    """Masks from boxes."""
    iou = result("label")["masks"]["iou"]
    names = {"offline": "U²-Net-p and GrabCut", "grabcut": "GrabCut", "box": "the box"}
    return table(list(names.values()), [[cell(iou[name]["all"], ".2") for name in names]])


def speed() -> str:
    """One ratio for each benchmark of speed or size."""
    attend = result("attention")["shapes"]["small"]["attend"]
    steps = result("train_step")["steps"]
    two, start, plan = result("two_processes"), result("edit_start"), result("plan_memory")
    ratios = [case["ratio"] for case in plan["cases"].values()]
    labelling, scoring = result("label")["embedding"], result("eval_speed")
    large = {name: row["peak bytes"] / 1e9 for name, row in result("large_image")["edits"].items()}
    edit = start["processes"]["regionroute edit"]["over the rival"]
    supervised = [
        f"{steps[f'supervised ({which})']['over unsupervised'] - 1:.1%}"
        for which in ("double.1", "all blocks")
    ]
    rows = [
        (
            "recording attention columns, 2,176 tokens, CPU",
            f"{attend['over plain']:.2f} x plain attention, "
            f"{attend['over dense']:.2f} x a dense softmax",
            "attention",
        ),
        (
            "supervision in a training step of nano",
            f"{supervised[0]} (one block), {supervised[1]} (all)",
            "train_step",
        ),
        (
            "two processes of one thread each, against one",
            f"{two['median_ratio']:.2f} x samples per second "
            f"({min(two['ratios']):.2f} to {max(two['ratios']):.2f})",
            "two_processes",
        ),
        (
            "`regionroute edit` on a photo, against importing diffusers' pipeline alone",
            f"{edit:.2f} x",
            "edit_start",
        ),
        (
            f"memory predicted by `regionroute plan` against PyTorch's allocator, {len(ratios)} "
            "small cases",
            f"{min(ratios):.2f} to {max(ratios):.2f} x",
            "plan_memory",
        ),
        (
            "labelling four objects of a photo with SAM, against one (random ViT-B)",
            f"{labelling['four objects over one']:.3f} x CPU time",
            "label",
        ),
        (
            "scoring 1,000 pairs of 512 px against 100",
            f"{scoring['memory_ratio_all_to_tenth']:.3f} x peak memory",
            "eval_speed",
        ),
        (
            f"peak memory of `regionroute edit` on photos of {' and '.join(large)} (limit: 4 GB)",
            " and ".join(f"{peak:.2f} GB" for peak in large.values()),
            "large_image",
        ),
    ]
    body = [(question, value, f"`python bench/{name}.py`") for question, value, name in rows]
    return table(["question", "number", "command"], body)


def studio() -> str:
    """The studio under load, with wall-clock and processor time."""
    memory, found = (result("studio")[part] for part in ("memory", "speed"))
    warm = memory["edits_of_warm_up"]
    kinds = {
        "rss": f"growth of the server's resident memory from edit {warm} to {memory['edits']} "
        "(limit: 5 %)",
        "allocated": "that of its allocated memory: without mapped files, which the kernel drops "
        "and reads again",
    }
    rows = [
        (
            title,
            f"{memory[f'{kind}_growth_percent']:.1f} % ({memory[f'{kind}_mib_after_warm_up']:,} "
            f"to {memory[f'{kind}_mib_at_the_end']:,} MiB, at most "
            f"{memory[f'{kind}_mib_largest']:,})",
        )
        for kind, title in kinds.items()
    ]
    rows += [
        (
            f"{memory['clients_at_once']} clients at once that get their own result, to the bit",
            f"{memory['clients_with_their_own_result']} of {memory['clients_at_once']}",
        ),
        (
            "a later edit by a program, median",
            f"{found['median_s']:.2f} s, {found['median_cpu_s']:.2f} s of processor time",
        ),
        (
            "the same edit by a fresh `regionroute edit`",
            f"{found['fresh_command_cpu_s']:.1f} s of processor time",
        ),
    ]
    if "page_second_edit_s" in found:  # with a Chromium
        seconds, busy = found["page_second_edit_s"], found["page_second_edit_cpu_s"]
        rows.append(
            (
                "second edit of an open page, from the click to the result (aim: 1.0 s)",
                f"{seconds:.2f} s, {busy:.2f} s of processor time of the server",
            )
        )
    title = f"nano-photos, two cores; times at load average {found['load_average']:g}"
    return table([title, "number"], rows)
