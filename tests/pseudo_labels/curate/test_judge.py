import pytest
import torch

from pseudo_labels.curate import judge as judge_module
from pseudo_labels.curate.judge import (
    JudgeSettings,
    VisionJudge,
    cached_answers,
    cached_caption,
)
from pseudo_labels.segment import Segment
from regionroute.errors import UserError

PICTURE = torch.rand(3, 60, 80, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(networks, tmp_path_factory):
    return str(networks.save_llava(tmp_path_factory.mktemp("judge") / "llava"))


@pytest.fixture
def segment():
    mask = torch.zeros(1, 60, 80)
    mask[:, 20:40, 20:60] = 1
    return Segment("dog", mask)


def test_a_real_model_answers_in_words(model):
    judge = VisionJudge(model)
    said = judge.say(PICTURE, "is this a dog?")
    assert isinstance(said, str)
    assert judge.say(PICTURE, "is this a dog?") == said
    assert judge.ask(PICTURE, "is this a dog?") in (True, False, None)


def test_a_model_without_a_chat_template_is_refused(networks, tmp_path):
    folder = networks.save_llava(tmp_path / "llava", chat_template=None)
    with pytest.raises(UserError, match="no chat template"):
        VisionJudge(str(folder))


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("Yes", True),
        ("yes, it does.", True),
        (" **No**, this is a cat", False),
        ("No.", False),
        ("Nothing here", None),
        ("yesterday", None),
        ("It is yes", None),
        ("", None),
    ],
)
def test_yes_no_or_unclear(model, monkeypatch, said, meant):
    judge = VisionJudge(model)
    monkeypatch.setattr(judge, "say", lambda image, text: said)
    assert judge.ask(PICTURE, "?") is meant


class Fake:
    """Says what it is told to and keeps what it was asked."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def ask(self, image, question):
        self.asked.append((tuple(image.shape), question))
        return self.answers.pop(0)

    def say(self, image, text):
        self.asked.append((tuple(image.shape), text))
        return "a  dog\non grass"


@pytest.fixture
def fake(monkeypatch):
    judge = Fake(True, False)
    monkeypatch.setattr(judge_module, "_judge", lambda *_: judge)
    return judge


def test_the_object_is_shown_with_a_rim_and_asked_about_once(fake, segment, tmp_path):
    settings = JudgeSettings("some/model")
    arguments = (tmp_path, "targets/a.png", PICTURE, segment, "neon", settings)
    answers = cached_answers(*arguments)
    assert answers == {"judge_object": True, "judge_style": False}
    assert cached_answers(*arguments) == answers
    assert [question for _, question in fake.asked] == [
        "Does this picture show a dog?",
        "Is the dog in this picture drawn in neon style?",
    ]
    assert fake.asked[0][0] == (3, 26, 52)


def test_a_damaged_record_is_asked_again(fake, segment, tmp_path):
    fake.answers *= 2
    settings = JudgeSettings("some/model")
    cached_answers(tmp_path, "a.png", PICTURE, segment, "neon", settings)
    for record in (tmp_path / ".cache" / "answers").iterdir():
        record.write_text("{half")
    cached_answers(tmp_path, "a.png", PICTURE, segment, "neon", settings)
    assert len(fake.asked) == 4


def test_captions_are_one_line_and_asked_for_once(fake, tmp_path):
    settings = JudgeSettings("some/model", caption=True)
    for _ in range(2):
        assert cached_caption(tmp_path, "a.png", PICTURE, settings) == "a dog on grass"
    assert len(fake.asked) == 1


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ((True, True), None),
        ((False, True), "no to the question about the object"),
        ((True, False), "no to the question about the style"),
        ((True, None), "no clear answer about the style"),
    ],
)
def test_what_speaks_against_a_sample(answers, told):
    checks = dict(zip(("judge_object", "judge_style"), answers, strict=True))
    fault = JudgeSettings("m").fault(checks)
    assert (fault is None) == (told is None)
    assert told is None or told in fault
