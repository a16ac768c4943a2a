"""The benchmarks run, and say where their numbers come from; nothing here is timed."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[2]


def run(tmp_path, script, *arguments):
    result = tmp_path / "result.json"
    command = [sys.executable, f"bench/{script}.py", "--result", result, *arguments]
    subprocess.run([*map(str, command)], cwd=REPOSITORY, check=True, capture_output=True)
    values = json.loads(result.read_text())
    assert values["command"].startswith(f"python bench/{script}.py")
    assert values["machine"]["cores"] >= 1
    assert values["versions"]["torch"]
    return values


@pytest.fixture
def run_here(tmp_path, monkeypatch):
    """Runs a script as `run` does, but in this process, which has imported torch already.

    Not for scripts that measure the memory of the process. Gives the result, None without a file.
    """

    def run_script(script, *arguments, code=0):
        result = tmp_path / "result.json"
        monkeypatch.syspath_prepend(str(REPOSITORY / "bench"))
        monkeypatch.chdir(REPOSITORY)
        monkeypatch.setattr(sys, "argv", [f"bench/{script}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(REPOSITORY / "bench" / f"{script}.py"), run_name="__main__")
        assert (end.value.code or 0) == code
        return json.loads(result.read_text()) if result.is_file() else None

    return run_script


@pytest.mark.slow
def test_attention(tmp_path):
    table = run(tmp_path, "attention", "--shapes", "nano", "--rounds", "2")["shapes"]["nano"]
    assert table["scaled_dot_product_attention"]["over plain"] == 1
    assert table["attend"]["over dense"] > 0
    assert min(table[name]["bytes"] for name in ("dense softmax", "attend")) > 0


@pytest.mark.slow
def test_attention_takes_less_memory_than_a_dense_softmax(tmp_path):
    # Fifty times less at this size; at nano's the difference is lost in a busy machine's noise.
    table = run(tmp_path, "attention", "--shapes", "small", "--rounds", "2")["shapes"]["small"]
    assert table["dense softmax"]["bytes"] > table["attend"]["bytes"] > 0


@pytest.mark.slow
def test_lora_moe(tmp_path):
    uses = run(tmp_path, "lora_moe", "--shapes", "nano, 1 picture", "--rounds", "2")["shapes"]
    uses = uses["nano, 1 picture"]
    assert uses["sampling"]["PEFT LoRA, rank 8"]["over PEFT"] == 1
    assert uses["sampling"]["merged"]["over base"] > 0
    assert {"routed, k=2", "routed, k=2 + shared"} <= uses["training"].keys()


@pytest.mark.slow
def test_train_step(tmp_path):
    steps = run(tmp_path, "train_step", "--rounds", "2", "--batch", "2")["steps"]
    assert steps["unsupervised"]["over unsupervised"] == 1
    assert len(steps) == 4


def test_ssm(tmp_path, run_here):
    options = ("--widths", "16", "--rounds", "2", "--longest", "1024")
    result = run_here("ssm", *options, "--result", tmp_path / "result.json")
    row = result["scans"]["16"]["512"]["forward and backward"]
    assert row["loop"]["over loop"] == 1
    assert row["associative"]["over loop"] > 0
    assert list(result["layers"]["16"]) == ["1024", "crossing"]
    assert (tmp_path / "result.png").is_file()


@pytest.mark.slow
def test_mamba_fit(tmp_path, assets):
    options = ("--seeds", "0", "--steps", "5", "--rival-steps", "5", "--tasks", "1")
    result = run(tmp_path, "mamba_fit", "--assets", assets, "--out", tmp_path, *options)
    assert result["loss at 5 steps"]["full"]["n"] == 1
    assert len(result["curves"]) == 3


@pytest.mark.slow
def test_mamba_stability(tmp_path, assets, run_here):
    options = ("--assets", assets, "--steps", "1", "--fits", "1", "--seconds", "0", "--least", "2")
    found = run_here("mamba_stability", *options, "--result", tmp_path / "result.json")
    assert len(found["growth"]["runs"]) == 2
    [row] = found["fits"]["rows"]
    assert (row["steps"], row["ended"], row["error"]) == (2, "time", None)


@pytest.mark.slow
def test_stylegallery(tmp_path):
    # More regions would be too small for this size's coarser grid, where the rival has none.
    options = ("--size", "64", "--regions", "4", "--rounds", "2", "--seeds", "1", "--steps", "6")
    result = run(tmp_path, "stylegallery", *options, "--widths", "16", "32", "32", "32")
    assert result["relative difference"] < 1e-3
    steps = result["steps"]
    assert steps["published scheme"]["times faster"] == 1
    assert steps["ours, warm"]["times faster"] > 0
    fewer = {name: row["times fewer operations"] for name, row in steps.items()}
    assert 1 < fewer["ours"] < 1.5 < fewer["ours, steps in pairs"] < fewer["ours, warm"]
    for way in ("single", "pairs"):
        assert result["schedules"][way][0] < result["schedules"]["start"][0]


@pytest.mark.slow
def test_stylegallery_clusters(tmp_path, assets):
    labels = assets / "photos/labels.jsonl"
    vgg = assets / "weights/lpips/vgg16_features.safetensors"
    options = ("--labels", labels, "--vgg", vgg, "--limit", "1")
    result = run(tmp_path, "stylegallery_clusters", *options)
    assert result["photos"] == 1
    table = result["partitions"]
    ours = table["chosen: features"]
    assert 0 < ours["best cluster IoU"] <= ours["union IoU"] <= 1
    assert {"chosen: whole picture", "4: SLIC", "8: features", "8: K-means, colour"} <= table.keys()


@pytest.mark.slow
def test_gallery_matching(tmp_path, assets):
    options = ("--assets", assets, "--words", "2", "--per-word", "2", "--others", "1")
    result = run(tmp_path, "gallery_matching", *options, "--draws", "1")
    assert (result["photos"], result["words"], result["questions"]) == (4, 2, 4)
    assert result["by chance"]["object"] < result["by chance"]["photo"] == 0.5
    for row in result["features"].values():
        assert 0 <= row["object"]["mean"] <= row["photo"]["mean"] <= 1


@pytest.mark.slow
def test_stylegallery_protocol(tmp_path, assets, random_inception):
    """Two families and two contents of noise: made once, scored, and made anew by new settings."""
    from regionroute.data.images import write_image

    for place, name in enumerate(("contents/a", "contents/b", "styles/x/1", "styles/y/1")):
        generator = torch.Generator().manual_seed(place)
        write_image(tmp_path / f"{name}.png", torch.rand(3, 64, 64, generator=generator))
    vgg = assets / "weights/lpips/vgg16_features.safetensors"
    alexnet = assets / "weights/lpips/alexnet_features.safetensors"
    command = [sys.executable, "bench/stylegallery_protocol.py"]
    command += ["--contents", tmp_path / "contents", "--styles", tmp_path / "styles"]
    command += ["--out", tmp_path / "out", "--model", "random", "--dino", "random"]
    command += ["--vgg", vgg, "--lpips", alexnet, "--figure", tmp_path / "figure.jpg"]
    command += ["--result", tmp_path / "all.json", "--inception", random_inception[0]]
    settings = ["size=64", "features.steps=2"]

    def make(steps):
        arguments = [*map(str, command), *settings, f"energy.steps={steps}"]
        subprocess.run(arguments, cwd=REPOSITORY, check=True, capture_output=True)
        pictures = sorted((tmp_path / "out/stylegallery").rglob("*.png"))
        assert len(pictures) == 4
        return {path.name: path.stat().st_mtime_ns for path in pictures}

    first = make(2)
    found = json.loads((tmp_path / "out/stylegallery.json").read_text())
    for scores in (found["scores"], found["unedited"]):
        assert scores.keys() == {"gram", "style", "content", "lpips", "fid", "artfid"}
        assert scores["lpips"]["n"] == scores["fid"]["n"] == 4
        lpips, fid = scores["lpips"]["mean"], scores["fid"]["value"]
        assert scores["artfid"]["value"] == pytest.approx((1 + lpips) * (1 + fid))
    assert found["unedited"]["lpips"]["mean"] == 0 < found["scores"]["lpips"]["mean"]
    assert (found["seconds"]["n"], len(found["pairs"])) == (4, 4)
    assert (tmp_path / "figure.jpg").is_file()
    command = command[: command.index("--inception")]  # it takes half of a run's time
    subprocess.run([*command, "--maker", "painting"], cwd=REPOSITORY, check=True)
    both = json.loads((tmp_path / "all.json").read_text())
    assert both["painting"]["stylegallery minus this"]["lpips"]["n"] == 4
    assert make(2) == first
    assert make(3) != first


@pytest.mark.slow
def test_references_as_pictures_score_best(tmp_path, assets):
    """Another system's pictures, here the references themselves: none is nearer to the style."""
    import shutil

    style, photo = assets / "style_images/Monet.jpg", assets / "photos/dog_00.jpg"
    places = {
        "contents/dog.jpg": photo,
        "styles/monet/a.jpg": style,
        "out/copy/monet/dog.png": style,
    }
    for target, source in places.items():
        (tmp_path / target).parent.mkdir(parents=True)
        shutil.copy(source, tmp_path / target)
    command = [sys.executable, "bench/stylegallery_protocol.py"]
    command += ["--contents", tmp_path / "contents"]
    command += ["--styles", tmp_path / "styles", "--out", tmp_path / "out", "--only-score"]
    command += ["--vgg", assets / "weights/lpips/vgg16_features.safetensors"]

    def score(system):
        arguments = [*map(str, command), "--system", system]
        return subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True)

    assert score("copy").returncode == 0
    found = json.loads((tmp_path / "out/copy.json").read_text())
    copied, unedited = found["scores"], found["unedited"]
    assert copied["style"]["mean"] == pytest.approx(1, abs=1e-5)
    assert copied["gram"]["mean"] == pytest.approx(0, abs=1e-6)
    assert unedited["style"]["mean"] < 0.9
    assert unedited["gram"]["mean"] > 0.01
    refused = score("nobody")
    assert refused.returncode == 2
    assert "monet/dog.png: this image is missing; make it first" in refused.stderr


@pytest.mark.parametrize("script", ["controls", "mamba_fit", "study", "style_image", "supervision"])
def test_help_teaches(script, run_here, capsys):
    run_here(script, "--help")
    assert f"python bench/{script}.py" in capsys.readouterr().out


def test_absent_words(tmp_path, run_here):
    found = run_here("absent_words", "--count", "16", "--result", tmp_path / "result.json")
    assert found["pictures"] == 16
    assert 0.5 < found["area under the curve"] <= 1


NANO_PHOTOS = REPOSITORY / "regionroute/models/nano_photos/experts"


@pytest.fixture(scope="module")
def photo_pairs(tmp_path_factory, assets):
    """Folder of a few labelled photos."""
    pairs = tmp_path_factory.mktemp("pairs") / "pairs"
    label = ["--labels", assets / "photos/labels.jsonl", "--styles", "small_photos", "--only",
             "watercolour,neon", "--size", "128", "--test-share", "0.1",
             "--out", pairs]  # fmt: skip
    command = [sys.executable, "-m", "regionroute.cli", "label", *label]
    subprocess.run([*map(str, command)], check=True, capture_output=True)
    return pairs


@pytest.mark.slow
def test_photos_says_who_paints(tmp_path, assets, photo_pairs):
    weights = assets / "weights/lpips/alexnet_features.safetensors"
    values = run(tmp_path, "photos", "--manifest", photo_pairs, "--weights", weights,
                 "--experts", NANO_PHOTOS, "--pairs", "2", "--out", tmp_path / "out")  # fmt: skip
    means = {
        name: groups["all"]["lpips_ratio"]["mean"] for name, groups in values["methods"].items()
    }
    assert "plain, without" not in means  # needs experts of its own
    assert means["base, plain"] != means["plain, with"]
    assert means["base paints, routed"] != means["routed, with"]
    assert means["base paints, true mask"] != means["routed by the true mask"]
    same = {values["methods"][name]["all"]["map_iou"]["mean"]
            for name in ("routed, with", "base paints, routed")}  # fmt: skip
    assert len(same) == 1  # who paints does not change the map


@pytest.mark.slow
def test_photos_of_two_seeds(tmp_path, assets, photo_pairs):
    weights = assets / "weights/lpips/alexnet_features.safetensors"
    arguments = ["photos", "--manifest", photo_pairs, "--weights", weights, "--pairs", "2",
                 "--out", tmp_path / "out", "--experts", NANO_PHOTOS, NANO_PHOTOS]  # fmt: skip
    values = run(tmp_path, *arguments, "--rows", "routed, with")
    groups = values["methods"]["routed, with"]
    assert values["pairs"] == 4
    assert groups["run: 0"]["leak"] == groups["run: 1"]["leak"]
    assert groups["all"]["n"] == groups["run: 0"]["n"] + groups["run: 1"]["n"]


@pytest.mark.slow
def test_gates(tmp_path, assets, photo_pairs):
    weights = assets / "weights/lpips/alexnet_features.safetensors"
    values = run(tmp_path, "gates", "--manifest", photo_pairs, "--weights", weights,
                 "--experts", NANO_PHOTOS, "--skip", "1", "--pairs", "2")  # fmt: skip
    ways = values["cut out by"]
    assert values["edits"] == 2
    assert ways["the true mask"]["pixel_iou"]["mean"] == 1
    assert ways["the true mask"]["leak"]["mean"] == 0
    assert ways["edges and colours"] != ways["edges alone"]
    assert set(values["edges and colours, minus"]) == set(ways) - {"edges and colours"}


@pytest.mark.slow
def test_label(tmp_path, assets):
    shared = ["--assets", assets, "--masks", "2", "--photos", "1", "--size", "64", "--rounds", "2"]
    values = run(tmp_path, "label", "--parts", "masks,pipeline", *shared)
    assert values["masks"]["masks"] == 2
    assert 0 < values["masks"]["iou"]["offline"]["all"]["mean"] <= 1
    pipeline = values["pipeline"]
    assert pipeline["samples"] == pipeline["objects"] * pipeline["styles"]
    assert pipeline["build over plain loop"] > 0


@pytest.mark.slow
def test_plan_memory(tmp_path):
    found = run(tmp_path, "plan_memory", "--shapes", "small")
    assert len(found["cases"]) == 5
    assert 0.9 < found["lowest ratio"] <= found["highest ratio"] < 1.1


@pytest.mark.slow
def test_train_kontext_dry(tmp_path):
    options = ("--dry", "--rounds", "2", "--sizes", "512")
    cases = run(tmp_path, "train_kontext", *options)["cases"]
    assert cases.keys() == {"bf16, 512 px"}
    for table in cases.values():
        assert table["diffusers + PEFT LoRA"]["speed over stock"] == 1
        assert table["ours, supervised"]["speed over stock"] > 0
        assert table["ours, without supervision"]["bytes over weights"] > 0


def test_train_kontext_wants_a_gpu(run_here, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    run_here("train_kontext", code=2)
    told = "error: the full size needs a GPU; `--dry` runs tiny sizes on the CPU\n"
    assert capsys.readouterr().err == told


@pytest.mark.slow
def test_edit_start(tmp_path):
    result = run(
        tmp_path, "edit_start", "--rounds", "2", "--size", "96", "--against", str(REPOSITORY)
    )
    assert all(ratio > 0 for ratio in result["edit over the other checkout"].values())
    assert result["processes"]["import of the stock pipeline"]["over the rival"] == 1
    assert all(row["processor seconds, median"] > 0 for row in result["processes"].values())


def test_supervision_runs_the_study_whose_arms_it_compares(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "bench"))
    import supervision

    from regionroute.cli.tour import study

    asked = []

    def refuse(command, **options):
        asked.append(command)
        raise SystemExit

    monkeypatch.setattr(supervision.subprocess, "run", refuse)
    monkeypatch.setattr(sys, "argv", ["supervision.py", "--out", str(tmp_path), "--seeds", "0"])
    with pytest.raises(SystemExit):
        supervision.main()
    assert asked[0][1:4] == ["-m", "regionroute.cli", "study"]
    assert {arm for pair in supervision.QUESTIONS.values() for arm in pair} <= set(study.METHODS)


def test_styleexpert_protocol(tmp_path, clip_folder, run_here):
    """Two unseen styles, three pairs, two seeds: made once, scored, and drawn the same again."""
    from regionroute.data.images import write_image

    names = ("contents/a", "contents/b", "styles/x/1", "styles/x/2", "styles/y/1", "styles/y/2")
    for place, name in enumerate(names):
        generator = torch.Generator().manual_seed(place)
        write_image(tmp_path / f"{name}.png", torch.rand(3, 64, 64, generator=generator))
    options = ["--base", "nano", "--pairs", "3"]
    options += ["--contents", tmp_path / "contents", "--styles", tmp_path / "styles"]
    options += ["--out", tmp_path / "out", "--clip", clip_folder, "--device", "cpu"]

    def make():
        run_here("styleexpert_protocol", *options)
        images = sorted((tmp_path / "out/regionroute").rglob("*.png"))
        return {path.name: path.stat().st_mtime_ns for path in images}, images

    first, images = make()
    pairs = json.loads((tmp_path / "out/pairs.json").read_text())
    assert len(images) == len(pairs) == 2 * 3 * 2
    assert {Path(pair["style"]).parent.name for pair in pairs} == {"x", "y"}
    assert len({(pair["content"], pair["style"], pair["seed"]) for pair in pairs}) == len(pairs)
    found = json.loads((tmp_path / "out/regionroute.json").read_text())
    assert (found["styles"], found["images"], found["scores"]["clip"]["n"]) == (2, 12, 12)
    assert found["unedited"]["clip"]["mean"] == pytest.approx(100, abs=1e-3)
    assert found["scores"]["clip"]["mean"] < 100
    assert make()[0] == first


def test_kernels_of_the_cpu_agree_with_the_dense_softmax(tmp_path, run_here):
    result = run_here("gpu_kernels", "--dry", "--result", tmp_path / "result.json")
    rows = {(row["kernel"], row["masked"]): row for row in result["kernels"]}
    for masked in (False, True):
        assert rows["cpu", masked]["passes"] is True
        assert "needs a CUDA GPU" in rows["efficient", masked]["refused"]
    assert max(rows["cpu", False]["errors"].values()) > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_gpu_script_runs_dry_and_resumes(tmp_path):
    for kind in ("bitsandbytes", "torchao"):
        pytest.importorskip(kind)
    command = ["bash", "bench/gpu.sh", "--dry", str(tmp_path)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    found = json.loads((tmp_path / "gpu.json").read_text())["stages"]
    assert all(stage["exit_status"] == 0 for stage in found.values())
    for bits in ("nf4", "fp8"):
        assert set(found[bits]["result"]["cases"]) == {f"{bits}, 512 px"}
    supervised = found["step"]["result"]["cases"]["bf16, 512 px"]["ours, supervised"]
    assert supervised["planned bytes over weights"] > 0
    before = (tmp_path / "sparse.json").stat().st_mtime_ns
    (tmp_path / "kernels.json").unlink()
    again = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    assert "sparse: finished before" in again.stdout
    assert "kernels: bench/gpu_kernels.py" in again.stdout
    assert (tmp_path / "sparse.json").stat().st_mtime_ns == before


def test_painters_are_compared_on_the_pairs_that_both_painted(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "bench"))
    import mamba_bank

    def row(photo, value):
        return {"style": "neon", "photo": photo, "gram": value, "match": value, "lpips": value}

    own = [row("a", 3.0), row("a", 5.0), row("b", 9.0)]  # two seeds, and a pair of its own
    found = mamba_bank.difference(own, [row("a", 1.0), row("c", 7.0)])
    assert found["gram"].mean == 3.0
    assert found["gram"].n == 2
