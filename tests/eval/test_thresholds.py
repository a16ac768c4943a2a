import pytest

from eval import rses
from eval.thresholds import parse_thresholds, violations
from regionroute.errors import UserError

METRICS = ["lpips_bg", "success", "fid"]


@pytest.mark.parametrize(
    ("text", "method", "metric", "sign", "limit"),
    [
        ("lpips_bg>0.1", None, "lpips_bg", ">", 0.1),
        (" ours : success <= 1e-1 ", "ours", "success", "<=", 0.1),
        ("a:b:fid>=-2", "a:b", "fid", ">=", -2),
    ],
)
def test_conditions_are_read(text, method, metric, sign, limit):
    (found,) = parse_thresholds([text], ["ours", "a:b"], METRICS)
    assert (found.method, found.metric, found.sign, found.limit) == (method, metric, sign, limit)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lpips_bg", r"write \[METHOD:\]METRIC>NUMBER"),
        ("lpips_bg=0.1", r"write \[METHOD:\]METRIC>NUMBER"),
        ("lpips_bg>1e", r"write \[METHOD:\]METRIC>NUMBER"),
        ("lpips_bg>", r"write \[METHOD:\]METRIC>NUMBER"),
        ("", r"write \[METHOD:\]METRIC>NUMBER"),
        ("lpips_gb>1", "the nearest is 'lpips_bg'"),
        ("theirs:success<1", "no such method, there are ours"),
    ],
)
def test_wrong_conditions_are_one_sentence(text, told):
    with pytest.raises(UserError, match=told):
        parse_thresholds([text], ["ours"], METRICS)


def summary(**means):
    slices = {"all": {name: {"mean": mean} for name, mean in means.items()}}
    return {"methods": {"floor": {"slices": slices}, "ours": {"slices": slices}}}


def test_each_comparison_and_the_unknown():
    made = summary(lpips_bg=0.2, success=None)
    texts = ["lpips_bg>0.1", "lpips_bg>0.2", "lpips_bg>=0.2", "lpips_bg<0.2", "lpips_bg<=0.2"]
    told = violations(parse_thresholds(texts, ["ours"], METRICS), made)
    assert [line.split('"')[1] for line in told] == [texts[0], texts[2], texts[4]]
    assert told[0] == 'ours: "lpips_bg>0.1", it is 0.2000'
    unknown = parse_thresholds(["success<0.5", "fid>1"], ["ours"], METRICS)
    assert len(violations(unknown, made)) == 2
    assert "there is no value" in violations(unknown, made)[0]


def test_the_exit_code_is_three_after_everything_is_written(tiny_manifest, edits, tmp_path, capsys):
    arguments = ["--manifest", str(tiny_manifest), "--split", "all", "--out", str(tmp_path / "s")]
    arguments += ["--edits", str(edits["half"]), "--edits", str(edits["good"])]
    assert rses.main([*arguments, "--fail-if", "mse_bg>0.5", "--fail-if", "good:leak>0"]) == 0
    capsys.readouterr()
    assert rses.main([*arguments, "--fail-if", "mse_bg>0.001"]) == 3
    said = capsys.readouterr().err
    assert '--fail-if: half: "mse_bg>0.001", it is 0.00' in said
    assert "--fail-if: good" not in said
    assert (tmp_path / "s" / "summary.json").exists()
