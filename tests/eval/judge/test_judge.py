import json
import math

import pytest
import torch
import yaml

from eval import rses
from eval.encoders import networks
from eval.judge.answers import Judge, parse_verdict, rate
from eval.judge.model import load_judge
from eval.judge.questions import SEMANTIC, VERDICTS, JudgeConfig, load_judge_config
from regionroute.data.images import write_image
from regionroute.errors import UserError
from regionroute.files import read_json, read_jsonl


class Script:
    """Answers by a rule and remembers what it was asked."""

    def __init__(self, rule):
        self.rule = rule
        self.asked = []

    def answer(self, images, question, config):
        self.asked.append((len(images), question))
        return self.rule(images, question)

    def identity(self):
        return {"encoder": "script", "weights": "none"}


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Yes", "yes"),
        ("no.", "no"),
        ("**No**, it is not; yes would be wrong", "no"),
        ("Answer: yes", "yes"),
        ("I would say yes, definitely yes", "yes"),
        ("It may be yes or no", None),
        ("Nothing to see", None),
        ("yesterday", None),
        ("", None),
        ("是", None),
    ],
)
def test_verdicts_are_read_or_not(answer, verdict):
    assert parse_verdict(answer, VERDICTS["q1"]) == verdict


def test_semantic_verdicts():
    for answer, verdict in (
        ("Semantic", "semantic"),
        ("only its colours: color", "color"),
        ("Colour.", "color"),
        ("neither", "neither"),
        ("semantic and color", "semantic"),
        ("both semantic and color", None),
    ):
        assert parse_verdict(answer, VERDICTS[SEMANTIC]) == verdict
    assert rate("color", "color") == 1
    assert rate("neither", "color") == 0
    assert math.isnan(rate(None, "color"))


def test_the_question_names_object_style_and_opposite():
    config = JudgeConfig(opposites={"line-art": "oil"}, default_opposite="pixel-art")
    assert "the dog" in config.question("q1", "dog", "fine line art", "line-art")
    assert "in fine line art style" in config.question("q1", "dog", "fine line art", "line-art")
    assert "in oil style" in config.question("q3", "dog", "fine line art", "line-art")
    assert "in pixel-art style" in config.question("q4", "dog", "cubism", "cubism")
    # Braces of a user's own words stay as they are.
    assert "{x}" in config.question("q1", "{x}", "s", "s")


def test_settings_come_from_a_file(tmp_path):
    path = tmp_path / "judge.yaml"
    path.write_text(yaml.safe_dump({"q1": "Is {object} {style}?", "opposites": {"a": "b"}}))
    config = load_judge_config(str(path))
    assert config.question("q1", "it", "red", "a") == "Is it red?"
    assert config.q2 == JudgeConfig().q2
    path.write_text("q9: nonsense")
    with pytest.raises(UserError, match="q9"):
        load_judge_config(str(path))
    path.write_text("temperature: -1")
    with pytest.raises(UserError, match="temperature"):
        load_judge_config(str(path))


def test_the_shipped_settings_are_the_usual_ones():
    from pathlib import Path

    shipped = Path(__file__).resolve().parents[3] / "configs" / "judge.yaml"
    assert load_judge_config(str(shipped)) == JudgeConfig()


def test_every_answer_is_stored_and_none_asked_twice(tmp_path):
    log = tmp_path / "judge.jsonl"
    model = Script(lambda images, question: "Yes" if images[0].mean() > 0.5 else "who knows")
    judge = Judge(model, JudgeConfig(), log)
    bright, dark = torch.ones(3, 4, 4), torch.zeros(3, 4, 4)
    where = {"id": "a", "method": "m", "region": 0}
    assert judge.ask("q1", where, [bright], "Is it?") == "yes"
    assert judge.ask("q1", where, [bright], "Is it?") == "yes"
    assert judge.ask("q1", {**where, "id": "b"}, [dark], "Is it?") is None
    assert judge.ask("q2", where, [bright], "Is it?") == "yes"  # the same answer serves
    assert len(model.asked) == 2
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(x["id"], x["question"], x["answer"], x["verdict"]) for x in lines] == [
        ("a", "q1", "Yes", "yes"),
        ("b", "q1", "who knows", None),
        ("a", "q2", "Yes", "yes"),
    ]
    assert lines[0]["text"] == "Is it?"
    assert judge.counts()["q1"] == {"answers": 2, "unparsable": 1}
    with log.open("a") as file:
        file.write("[" * 50_000 + "\n")
        file.write(json.dumps({**lines[0], "answer": 3}) + "\n")
        file.write('{"key": "half')
    again = Judge(Script(None), JudgeConfig(), log)  # asking would fail
    assert again.ask("q1", where, [bright], "Is it?") == "yes"
    assert again.counts() == judge.counts()
    hotter = Judge(model, JudgeConfig(temperature=1.0), log)
    hotter.ask("q1", where, [bright], "Is it?")
    assert len(model.asked) == 3  # other settings, another answer


def test_the_command_asks_all_four_of_every_method(tiny_manifest, edits, tmp_path, monkeypatch):
    def rule(images, question):
        green = images[-1][1].mean() > images[-1][0].mean()
        if "background" in question:
            return "perhaps"
        return "Yes." if green == ("pixel-art" in question) else "No."

    model = Script(rule)
    monkeypatch.setattr(networks, "load_judge", lambda place, device: model)
    out = tmp_path / "scores"
    arguments = ["--manifest", str(tiny_manifest), "--split", "all", "--edits", str(edits["good"])]
    arguments += ["--out", str(out), "--judge", "script"]
    assert rses.main(arguments) == 0
    summary = read_json(out / "summary.json")
    estimates = summary["methods"]["good"]["slices"]["all"]
    assert estimates["q1"]["n"] == 4
    assert (estimates["q2"]["n"], estimates["q2"]["n_invalid"]) == (0, 4)
    assert summary["judge"]["config"]["q1"] == JudgeConfig().q1
    assert summary["judge"]["config"]["temperature"] == 0
    # Four samples by floor, edits and ceiling.
    assert summary["judge"]["answers"]["q2"] == {"answers": 12, "unparsable": 12}
    assert len(read_jsonl(out / "judge.jsonl")) == 4 * 12
    assert "unclear answers: q1 0 of 12" in (out / "summary.md").read_text()
    before = len(model.asked)
    assert rses.main(arguments) == 0
    assert len(model.asked) == before
    assert read_json(out / "summary.json") == summary


def test_the_semantic_question_shows_the_reference_first(
    tiny_manifest, edits, tmp_path, monkeypatch
):
    model = Script(lambda images, question: "color" if len(images) == 2 else "yes")
    monkeypatch.setattr(networks, "load_judge", lambda place, device: model)
    write_image(tmp_path / "styles" / "pixel-art.png", torch.rand(3, 16, 16))
    out = tmp_path / "scores"
    arguments = ["--manifest", str(tiny_manifest), "--split", "all", "--edits", str(edits["good"])]
    arguments += ["--out", str(out), "--judge", "script", "--metrics", "semantic,semantic_color"]
    assert rses.main([*arguments, "--style-images", str(tmp_path / "styles")]) == 0
    estimates = read_json(out / "summary.json")["methods"]["good"]["slices"]["all"]
    assert estimates["semantic"]["mean"] == 0
    assert estimates["semantic_color"]["mean"] == 1
    # Two of the four styles have no image.
    assert (estimates["semantic"]["n"], estimates["semantic"]["n_invalid"]) == (2, 2)


SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>", "<unk>"),
)
WORDS = [
    "yes",
    "no",
    "is",
    "the",
    "in",
    "this",
    "picture",
    "style",
    "background",
    "of",
    "user",
    "assistant",
    "?",
    ",",
    ".",
]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>{% endfor %}<|im_start|>assistant "
)


@pytest.fixture(scope="module")
def tiny_judge(tmp_path_factory):
    """A Qwen2.5-VL of the real class with random weights, as transformers saves it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    folder = tmp_path_factory.mktemp("judge")
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        additional_special_tokens=list(SPECIAL[:7]),
    )
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=56 * 56),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    small = {"hidden_size": 32, "intermediate_size": 32}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    text = {"vocab_size": len(vocabulary), "max_position_embeddings": 512, "rope_parameters": rope}
    ends = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
    vision = {"depth": 1, "num_heads": 2, "out_hidden_size": 32, "fullatt_block_indexes": [0]}
    config = Qwen2_5_VLConfig(
        text_config=small | heads | text | ends,
        vision_config=small | vision,
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=3,
        vision_end_token_id=4,
    )
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.save_pretrained(folder / "untrained")
    for parameter in model.parameters():  # as after training: nothing left at 0 or 1
        parameter.data.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return folder


def test_a_model_of_a_real_class_answers_the_same_again(tiny_judge):
    judge = load_judge(str(tiny_judge))
    pictures = [torch.rand(3, 40, 60), torch.rand(3, 30, 30)]
    for config in (JudgeConfig(), JudgeConfig(temperature=2.0, seed=3)):
        first = judge.answer(pictures[:1], "is the image in style ?", config)
        assert judge.answer(pictures[:1], "is the image in style ?", config) == first
    # Two images at once as well, and the draws follow the seed.
    said = {
        judge.answer(pictures, "is it ?", JudgeConfig(temperature=9.0, seed=seed))
        for seed in range(4)
    }
    assert len(said) > 1
    assert set(" ".join(said).split()) <= {*WORDS, *SPECIAL}
    assert judge.identity()["encoder"] == tiny_judge.name


def test_gibberish_is_counted_not_scored(tiny_judge, tiny_manifest, edits, tmp_path, capsys):
    out = tmp_path / "scores"
    arguments = ["--manifest", str(tiny_manifest), "--split", "val", "--edits", str(edits["good"])]
    arguments += ["--out", str(out), "--judge", str(tiny_judge), "--metrics", "vlm"]
    assert rses.main(arguments) == 0
    answers = read_jsonl(out / "judge.jsonl")
    counts = read_json(out / "summary.json")["judge"]["answers"]
    for name in ("q1", "q2", "q3", "q4"):
        own = [entry for entry in answers if entry["question"] == name]
        assert counts[name]["answers"] == len(own) == 3
        assert counts[name]["unparsable"] == sum(entry["verdict"] is None for entry in own)


def test_judges_that_cannot_judge_are_refused(tiny_judge, tmp_path, clip_folder):
    for file in tiny_judge.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    random = (tiny_judge / "untrained" / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(random)
    with pytest.raises(UserError, match="these weights are random and make no results"):
        load_judge(str(tmp_path))
    with pytest.raises(UserError, match=r"--judge .*cannot be loaded"):
        load_judge(str(clip_folder))
    with pytest.raises(UserError, match=r"--judge ./nowhere: cannot be loaded"):
        load_judge("./nowhere")
    (tmp_path / "model.safetensors").write_bytes((tiny_judge / "model.safetensors").read_bytes())
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        load_judge(str(tmp_path))


def test_settings_without_a_judge_are_a_mistake(tiny_manifest, edits, refused, tmp_path):
    arguments = ["--manifest", tiny_manifest, "--edits", edits["good"], "--out", tmp_path / "s"]
    told = refused(rses.main, [*arguments, "--judge-config", "judge.yaml"])
    assert "give --judge as well" in told
