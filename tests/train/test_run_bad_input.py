"""Everything a user can get wrong with training: one sentence, nothing of an earlier run lost."""

import shutil

import pytest

from regionroute.models.tiny import build_tiny
from train.run import main


@pytest.fixture
def folder(tmp_path, tiny_manifest, tiny_base, monkeypatch):
    """The pairs, what an earlier run left, damaged bases and odd files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("of an earlier run")
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    (tmp_path / "broken.yaml").write_text("train:\n  steps: [1\n")
    (tmp_path / "nokey.yaml").write_text("? [1, 2]\n: 3\n")
    (tmp_path / "itself.yaml").write_text("experts: {styles: &x [*x]}\n")
    (tmp_path / "date.yaml").write_text("seed: 2020-13-45\n")
    for name, content in DEEPSPEED.items():
        (tmp_path / f"{name}.json").write_text(content)
    return tmp_path


DEEPSPEED = {
    "cut": "{",
    "list": "[1]",
    "ours": '{"optimizer": {}}',
    "zero": '{"zero_optimization": 3}',
    "word": '{"zero_optimization": {"stage": "two"}}',
    "none": '{"zero_optimization": {"stage": null}}',
    "nine": '{"zero_optimization": {"stage": 9}}',
    "typo": '{"zero_optimization": {"stagee": 1}}',
    "type": '{"zero_optimization": {"reduce_bucket_size": "large"}}',
}


@pytest.fixture
def arguments(tiny_base):
    return [
        f"base.name={tiny_base}",
        "data.manifest=pairs",
        "output=run",
        "train.steps=1",
        "train.global_batch=2",
    ]


SETTINGS = [
    (["--config", "nowhere.yaml"], "nowhere.yaml: no such configuration"),
    (["--config", "pairs"], "pairs: this is a folder"),
    (["--config", "binary.json"], "binary.json: this is not UTF-8"),
    (["--config", "list.yaml"], "list.yaml: a configuration is a list of 'key: value'"),
    (["--config", "broken.yaml"], "broken.yaml:3: this is not valid YAML"),
    (["--config", "nokey.yaml"], "nokey.yaml:1: this is not valid YAML"),
    (["--config", "itself.yaml"], "itself.yaml:1: this is not valid YAML (the alias"),
    (["--config", "date.yaml"], "date.yaml: this is not valid YAML (month"),
    (["--confg", "x"], "unrecognized arguments: --confg"),
    (["--local_rank", "x"], "invalid int value: 'x'"),
    (["train.stepz=3"], "unknown key 'train.stepz', the nearest known one is 'train.steps'"),
    (["train.steps=many"], "train.steps must be a valid integer, not many"),
    (["train.steps=-1"], "train.steps must be greater than or equal to 1"),
    (["train.steps=.nan"], "train.steps must be a valid integer"),
    (["train.steps=" + "9" * 5000], "this is not valid YAML"),
    (["experts.styles=" + "[" * 2000], "this is not valid YAML"),
    (["experts.styles={2020-01-01: 1}"], "these settings cannot be used"),
    (["optim.lr=.inf"], "optim.lr must be a finite number"),
    (["train"], "override 'train': write it as key=value"),
    (["train=1"], "'train' is a group of settings"),
    (["train.global_batch=3", "train.accumulation=2"], "accumulation (2) divides"),
    (["train.offload=all"], "have zero_stage 3 (it is 0) with offload all"),
    (["train.trackers=[mlflow]"], "train.trackers must be 'tensorboard', 'wandb' or 'trackio'"),
    (["train.trackers=[wandb, wandb]"], "name each of its trackers once (wandb, wandb)"),
    (["train.compile=true", "train.zero_stage=3"], "train.compile: ZeRO stage 3 gathers"),
    (["optim.name=prodigy"], "have an lr of about 1 with name prodigy"),
    (["optim.ema=1"], "optim.ema must be less than 1"),
    (["supervision.max_gradient_ratio=0"], "supervision.max_gradient_ratio must be greater than 0"),
    (["output="], "output must "),
    (['output=""'], "output must have at least 1 character"),
    (["output=file"], "output=file: this is a file, give a folder"),
    (["output=file/run"], "file is a file, not a folder"),
    (["train.deepspeed=nowhere.json"], "nowhere.json: no such file"),
    (["train.deepspeed=pairs"], "pairs: no such file"),
    (["train.deepspeed=binary.json"], "binary.json: this JSON cannot be read"),
    (["train.deepspeed=cut.json"], "cut.json:1: this is not JSON"),
    (["train.deepspeed=list.json"], "list.json: must hold a JSON object"),
    (["train.deepspeed=ours.json"], "ours.json: remove 'optimizer' and set"),
    (["train.deepspeed=zero.json"], "zero.json: zero_optimization must be a JSON object"),
    (["train.deepspeed=word.json"], "word.json: zero_optimization.stage must be 0, 1, 2 or 3"),
    (["train.deepspeed=none.json"], "none.json: zero_optimization.stage must be 0, 1, 2 or 3"),
    (["train.deepspeed=nine.json"], "nine.json: zero_optimization.stage must be 0, 1, 2 or 3"),
    (["base.name=nowhere"], "base 'nowhere': no such folder"),
    (["base.name=file"], "base file: this is a file"),
    (["base.name=empty"], "base empty: no model_index.json"),
    (["base.dtype=float16"], "use bfloat16 or float32"),
    (["base.dtype=int8"], "base.dtype must be"),
    (["data.manifest=nowhere"], "nowhere/manifest.jsonl: no such manifest"),
    (["data.manifest=file"], "file/manifest.jsonl: no such manifest"),
    (["data.split=holdout"], "split 'holdout' has no sample"),
    (["data.manifest=s3://bucket/pets"], "only data.cache may be a URL, mount the bucket"),
    (["data.shuffle_lanes=3", "train.global_batch=4"], "data.shuffle_lanes (3) that divides"),
]


@pytest.mark.parametrize(("more", "told"), SETTINGS)
def test_wrong_settings(folder, refused, arguments, more, told):
    assert told in refused(main, [*arguments, *more])


LATER = [
    (["train.deepspeed=typo.json"], "typo.json: DeepSpeed refuses it"),
    (["train.deepspeed=type.json"], "type.json: DeepSpeed refuses it"),
    (["data.cache=file"], "data.cache=file: this is a file, give a folder"),
    (["data.cache=nowhere://x"], "data.cache=nowhere://x: Protocol not known: nowhere"),
    (["data.resolution=1000000"], "not enough memory"),
    (["base.max_text_length=5"], "sample 'pair-0': "),
    (["base.max_text_length=1000"], "base.max_text_length=1000: the pipelines read at most"),
    (["experts.styles=[crayon]"], "has no style 'crayon', the nearest is"),
    (["experts.styles=[line-art, line-art]"], "names a style twice"),
    (["experts.targets=[to_z]"], "no linear layer is named"),
    (["experts.rank=1000000000"], "not enough memory"),
    (["supervision.layers=[double.9]"], 'no block "double.9"'),
    (["train.validate_every=1", "train.validation_split=x"], "no sample of a trained style in"),
    (["train.validate_every=1", "train.validation_split=train"], "is the split that is trained"),
]


@pytest.mark.parametrize(("more", "told"), LATER)
def test_settings_that_do_not_fit_the_base_or_the_data(folder, refused, arguments, more, told):
    assert told in refused(main, [*arguments, *more])


DATA = [
    (lambda s: s.nothing(), "split 'train' has no sample with regions"),
    (lambda s: s.line(b"{broken"), "manifest.jsonl:5: this line is not JSON"),
    (lambda s: s.line(b"\xff"), "manifest.jsonl: this is not UTF-8"),
    (lambda s: s.row(schema=2), "manifest.jsonl:2: schema version 2"),
    (lambda s: s.row(id="pair-0"), "id 'pair-0' was used on line 1"),
    (lambda s: s.row(region_mask="../secret.png"), "it must stay inside the manifest's folder"),
    (lambda s: s.row(region_box=[0, 0]), "manifest.jsonl:2: key 'regions.0.box.2' is missing"),
    (lambda s: s.row(promt=""), "unknown key 'promt', the nearest known one is 'prompt'"),
    (lambda s: s.row(prompt="make the dog nice"), "sample 'pair-1': "),
    (lambda s: s.row(region_style_span=[900, 910]), "sample 'pair-1': "),
    (lambda s: s.row(region_style_span=[9, 2]), "sample 'pair-1': "),
    (lambda s: s.text("1.context.png"), "1.context.png: this image cannot be read"),
    (lambda s: s.cut("1.target.png"), "1.target.png: this image cannot be read"),
    (lambda s: s.directory("1.target.png"), "1.target.png: this is a folder"),
    (lambda s: s.circle("1.mask.png"), "1.mask.png: links lead in a circle"),
    (lambda s: s.png("1.target.png", (8, 8)), "the target is 8x8 pixels"),
    (lambda s: s.png("1.mask.png", (8, 8)), "the mask is 8x8 pixels"),
    (lambda s: s.png("1.mask.png", (64, 64)), "1.mask.png: the mask is empty"),
]


@pytest.mark.parametrize(("damage", "told"), DATA)
def test_wrong_data(folder, spoil, refused, arguments, damage, told):
    damage(spoil)
    assert told in refused(main, arguments)


def part(name, content):
    def damage(base):
        file = base / name
        if content is None:
            file.unlink()
        elif isinstance(content, int):
            file.write_bytes(file.read_bytes()[:content])
        else:
            file.write_text(content)

    return damage


WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
BASES = [
    (part("model_index.json", "{"), "model_index.json: not valid JSON"),
    (part("model_index.json", "[]"), "model_index.json: must hold a JSON object"),
    (part("model_index.json", '{"_class_name": "FluxPipeline"}'), "this is a FluxPipeline"),
    (
        part("model_index.json", '{"_class_name": "FluxKontextPipeline"}'),
        "damaged, copy it again: 'vae'",
    ),
    (part("regionroute.json", '{"guidance": NaN}'), "guidance must be a positive number"),
    (part("regionroute.json", '{"step": 1}'), "unknown key 'step'"),
    (part("transformer/config.json", None), "transformer/config.json is missing"),
    (part("transformer/config.json", "{"), "transformer/config.json: not valid JSON"),
    (part("transformer/config.json", "[]"), "must hold a JSON object"),
    (part("transformer/config.json", '{"num_layers": "x"}'), "its files are damaged"),
    (part(WEIGHTS, None), "transformer has no weights"),
    (part(WEIGHTS, 0), "its files are damaged"),
    (part(WEIGHTS, 100), "its files are damaged"),
    (part(WEIGHTS, 5000), "its files are damaged"),
    (part("text_encoder/config.json", "[]"), "must hold a JSON object"),
    (part("tokenizer_2/tokenizer.json", "{}"), "its files are damaged"),
    (part("scheduler/scheduler_config.json", "[]"), "its files are damaged"),
]


@pytest.mark.parametrize(("damage", "told"), BASES)
def test_damaged_bases(folder, refused, arguments, tiny_base, damage, told):
    shutil.copytree(tiny_base, folder / "base")
    damage(folder / "base")
    sentence = refused(main, [*arguments, "base.name=base"])
    assert told in sentence
    assert "base" in sentence


STATE = "trainer.json"
LORA = "experts/line-art/pytorch_lora_weights.safetensors"
MODEL = "engine/mp_rank_00_model_states.pt"
CHECKPOINTS = [
    (STATE, "{", "trainer.json:1: this is not JSON"),
    (STATE, "[]", "this checkpoint is damaged (trainer.json"),
    (STATE, "{}", "this checkpoint is damaged (trainer.json"),
    (STATE, '{"step": 1, "seconds": 1, "facts": {}}', "this checkpoint is damaged (trainer.json"),
    (MODEL, "text", "step-000001: this checkpoint is damaged"),
    (MODEL, 1000, "step-000001: this checkpoint is damaged"),
    (MODEL, None, "step-000001: this checkpoint is damaged"),
    ("experts/experts.json", "{", "experts.json"),
    ("experts/experts.json", None, "no experts.json here"),
    (LORA, 100, LORA),
    (LORA, None, LORA),
]
OTHERS = [
    ("experts.rank=2", "experts.rank = 4, now it is 2"),
    ("experts.alpha=2", "experts.alpha = 4.0, now it is 2.0"),
    ("experts.styles=[line-art]", "experts.styles = "),
    ("experts.targets=[to_q]", "experts.targets = "),
    ("train.zero_stage=1", "train.zero_stage = 0, now it is 1"),
]


@pytest.fixture(scope="module")
def kept():
    """Files of a finished run by name, made once: the folders of all tests are alike."""
    return {}


@pytest.fixture
def checkpoint(folder, arguments, kept):
    """The checkpoint of a finished run of one step."""
    run = folder / "run"
    if not kept:
        assert main(arguments) == 0
        kept |= {path.relative_to(run): path.read_bytes() for path in files(run)}
    (run / "deepspeed.log").unlink(missing_ok=True)
    for name, content in kept.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(content)
    return run / "checkpoints" / "step-000001"


def files(folder):
    """Every file but the log that each start adds to."""
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"]


@pytest.mark.parametrize(("name", "content", "told"), CHECKPOINTS)
def test_damaged_checkpoints(refused, arguments, checkpoint, name, content, told):
    part(name, content)(checkpoint)
    assert told in refused(main, [*arguments, "train.steps=2"])


@pytest.mark.parametrize(("more", "told"), OTHERS)
def test_checkpoints_of_other_settings(refused, arguments, checkpoint, more, told):
    sentence = refused(main, [*arguments, "train.steps=2", more])
    assert "step-000001: this checkpoint was trained with" in sentence
    assert told in sentence


def test_a_base_with_other_weights(folder, refused, arguments, checkpoint):
    other = build_tiny(folder / "other", seed=1)
    sentence = refused(main, [*arguments, "train.steps=2", f"base.name={other}"])
    assert "base.name = other weights than now" in sentence


def full(*_, **__):
    # All that torch says when a disk is full.
    raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 64 vs 0")


@pytest.mark.parametrize("what", ["torch.save", "train.data.shards.save_file"])
def test_a_full_disk_keeps_the_earlier_checkpoint(
    folder, refused, arguments, checkpoint, monkeypatch, what
):
    shutil.rmtree(folder / "run" / "cache")
    for name in ("losses.jsonl", "run.json", "config.yaml"):  # of the run that is going on
        (folder / "run" / name).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(what, full)
        assert "the disk is full" in refused(main, [*arguments, "train.steps=2"])
    assert main([*arguments, "train.steps=2"]) == 0
    assert (folder / "run" / "checkpoints" / "step-000002" / STATE).is_file()


def test_no_permission_is_told_before_the_work(folder, refused, arguments, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "output=run: no permission to write in" in refused(main, arguments)
