import pytest
import torch

from pseudo_labels.curate import judge as judge_module
from pseudo_labels.curate.judge import (
    CAPTION,
    QUESTIONS,
    JudgeSettings,
    VisionJudge,
    cached_answers,
    cached_caption,
)
from pseudo_labels.segment import Segment
from regionroute.errors import UserError

PICTURE = torch.rand(3, 60, 80, generator=torch.Generator().manual_seed(0))
TARGET = 1 - PICTURE


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
    said = judge.say([PICTURE], "is this a dog?")
    assert isinstance(said, str)
    assert judge.say([PICTURE], "is this a dog?") == said
    assert judge.ask([PICTURE, PICTURE.flip(-1)], "is this a dog?") in (True, False, None)


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
    monkeypatch.setattr(judge, "say", lambda images, text: said)
    assert judge.ask([PICTURE], "?") is meant


class Fake:
    """Gives prepared answers and records the questions."""

    name = "fake model"

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def ask(self, images, question):
        self.asked.append((images, question))
        return self.answers.pop(0)

    def say(self, images, text):
        self.asked.append((images, text))
        return "a  dog\non grass"


@pytest.fixture
def fake(monkeypatch):
    judge = Fake(True, True, False, True)
    monkeypatch.setattr(judge_module, "_judge", lambda *_: judge)
    return judge


def test_photo_and_target_are_cropped_and_asked_about_once(fake, segment, tmp_path):
    settings = JudgeSettings("some/model")
    arguments = (tmp_path, "targets/a.png", (PICTURE, TARGET), segment, "neon", settings)
    answers = cached_answers(*arguments)
    assert answers == {
        "judge_layout": True,
        "judge_attributes": True,
        "judge_identity": False,
        "judge_style": True,
    }
    assert cached_answers(*arguments) == answers
    assert len(fake.asked) == 4
    for (photo, target), question in fake.asked:
        assert torch.equal(photo, PICTURE[:, 17:43, 14:66])  # the box and 15 % around it
        assert torch.equal(target, TARGET[:, 17:43, 14:66])
        assert "dog" in question
    assert ["neon" in question for _, question in fake.asked] == [False, False, False, True]


def test_the_questions_are_about_layout_attributes_identity_and_style():
    assert list(QUESTIONS) == ["layout", "attributes", "identity", "style"]
    for word, name in (("pose", "layout"), ("age", "attributes"), ("same", "identity")):
        assert word in QUESTIONS[name]
    for question in QUESTIONS.values():
        assert "first image is a photo" in question


def test_captions_leave_out_colour_and_style():
    for word in ("colours", "mood", "artistic style"):
        assert word in CAPTION.partition("Do not mention")[2]


def test_a_damaged_record_is_asked_again(fake, segment, tmp_path):
    fake.answers *= 2
    settings = JudgeSettings("some/model")
    cached_answers(tmp_path, "a.png", (PICTURE, TARGET), segment, "neon", settings)
    for record in (tmp_path / ".cache" / "answers").iterdir():
        record.write_text("{half")
    cached_answers(tmp_path, "a.png", (PICTURE, TARGET), segment, "neon", settings)
    assert len(fake.asked) == 8


def test_captions_are_one_line_and_asked_for_once(fake, tmp_path):
    settings = JudgeSettings("some/model", caption=True)
    for _ in range(2):
        assert cached_caption(tmp_path, "a.png", PICTURE, settings) == "a dog on grass"
    assert len(fake.asked) == 1


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({}, None),
        ({"layout": False}, "no to the question about the layout"),
        ({"attributes": False}, "no to the question about the attributes"),
        ({"identity": False}, "no to the question about the identity"),
        ({"style": False}, "no to the question about the style"),
        ({"style": None}, "no clear answer about the style"),
    ],
)
def test_any_other_answer_than_yes_rejects_a_sample(answers, reason):
    checks = {f"judge_{name}": answers.get(name, True) for name in QUESTIONS}
    fault = JudgeSettings("m").fault(checks)
    assert (fault is None) == (reason is None)
    assert reason is None or reason in fault
