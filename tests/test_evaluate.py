"""The stage evaluation: answers to records to figures, with models that are known, and with real ones at toy size."""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.common.errors import DataError
from pipelines.common.files import file_digest, folder_digests, read_json, write_json
from pipelines.common.vlm.dialogue import Question
from pipelines.common.vlm.load import load
from pipelines.common.vlm.lora import put_lora
from pipelines.common.vlm.settings import LoraSettings
from pipelines.openpack import evaluate
from pipelines.openpack.baselines import fit
from pipelines.openpack.finetune import Adapter
from pipelines.openpack.loader import ShardReader
from pipelines.openpack.metrics import BASE, TUNED, report_figures
from pipelines.openpack.predict import Prediction
from pipelines.openpack.pretrain import read_base
from pipelines.openpack.records import read_clip_records
from pipelines.openpack.settings import (
    EvaluationSettings,
    ShardSettings,
)
from pipelines.openpack.shards import write_shards
from pipelines.openpack.taxonomy import OPENPACK

ARMS = [BASE, TUNED, "whole_clip", "majority_class", "transition_table", "transition_table_true"]
METRICS = ["OCA", "tIoU@0.5", "AA@1"]
FIGURES = {*METRICS, "mean_tIoU", "mean_tIoU_boundary", "median_boundary_error_frames"}
SETTINGS = EvaluationSettings(clips=5, batch_size=4, device="cpu")


@pytest.fixture(scope="module")
def shards(toy_shards: Path) -> Path:
    return toy_shards


@pytest.fixture(scope="module")
def models(toy_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The toy base, and an adapter of random weights, which answers otherwise."""
    adapter, made = tmp_path_factory.mktemp("models") / "adapter", read_base(toy_base)
    torch.manual_seed(7)
    model = put_lora(load(toy_base).model, LoraSettings(rank=4), gradient_checkpointing=False)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(adapter)
    digest = file_digest(adapter / "adapter_model.safetensors")
    write_json(adapter / "adapter.json", asdict(Adapter(made.name, made.digest, digest, 0, 0, 0.0, None, [])))
    return toy_base, adapter


@pytest.fixture(scope="module")
def run(models: tuple[Path, Path], shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "evaluation"
    evaluate.evaluate(*models, shards, out, SETTINGS, progress=ignore)
    return out


def ignore(line: str) -> None:
    pass


class Oracle:
    """Answers with the truth, or with what `spoil` makes of it."""

    size = 28

    def __init__(self, reader: ShardReader, spoil=lambda prediction: prediction) -> None:
        self.targets = {sample.key: sample.clip.target for sample in map(reader.sample, range(len(reader)))}
        self.spoil = spoil
        self.asked: list[str] = []

    def answer(self, clip_ids: Sequence[str], questions: Sequence[Question]) -> list[Prediction]:
        assert [question.videos[0].shape for question in questions] == [(2, 28, 28, 3)] * len(clip_ids)
        self.asked += clip_ids
        return [self.spoil(self._truth(clip_id)) for clip_id in clip_ids]

    def _truth(self, clip_id: str) -> Prediction:
        target = self.targets[clip_id]
        span = (target.start, target.end)
        what, following = {target.operation: 1.0}, {target.next: 1.0}
        return Prediction(clip_id, target.operation, *span, target.next, what, {span: 1.0}, following, OPENPACK)


def test_a_perfect_and_a_wrong_model(shards: Path):
    test, train = ShardReader(shards, "test"), ShardReader(shards, "train")
    baselines = fit((train.sample(index).clip.target for index in range(len(train))), OPENPACK)
    perfect = Oracle(test)
    wrong = Oracle(test, lambda one: replace(one, operation=8100, start=0, end=0, next=8100))
    arms = {BASE: wrong, TUNED: perfect}
    models = {BASE: "a", TUNED: "b"}
    records = list(evaluate.answer_clips(arms, baselines, test, SETTINGS, models, ignore))
    assert perfect.asked == wrong.asked == test.keys == sorted(test.keys)
    report = report_figures(records, OPENPACK)
    for part in ("all_clips", "all_clips_native"):
        figures = report[part]
        assert [figures[TUNED][name] for name in METRICS] == [1, 1, 1]
        assert [figures[BASE][name] for name in METRICS] == [0, 0, 0]
        # a right model gives the table the right operation
        assert figures["transition_table"] == figures["transition_table_true"]
    counts = report["confusion"]["counts"]
    assert [row[place] for place, row in enumerate(counts)] == [sum(row) for row in counts]


def test_one_table_is_given_the_tuned_operation_and_one_the_true_one(shards: Path):
    test, train = ShardReader(shards, "test"), ShardReader(shards, "train")
    targets = [train.sample(index).clip.target for index in range(len(train))]
    order = {target.operation: target.next for target in targets}  # one box, so each operation has one next
    fixed = Oracle(test, lambda one: replace(one, operation=500))
    arms = {BASE: Oracle(test), TUNED: fixed}
    records = list(evaluate.answer_clips(arms, fit(targets, OPENPACK), test, SETTINGS, dict.fromkeys(arms, ""), ignore))
    given = [one.prediction.native.next for one in records if one.arm == "transition_table"]
    true = [one for one in records if one.arm == "transition_table_true" and one.truth.native.operation in order]
    assert given == [order[500]] * len(test)
    assert [one.prediction.native.next for one in true] == [order[one.truth.native.operation] for one in true]
    assert len({one.prediction.native.next for one in true}) >= 4


def test_the_real_run_writes_results_as_the_brief_asks(run: Path, models: tuple[Path, Path]):
    results, report = read_json(run / "results.json"), read_json(run / "report.json")
    assert list(results) == [BASE, TUNED, "run"]
    for arm in (BASE, TUNED):
        assert list(results[arm]) == METRICS
        assert results[arm] == {name: report["first_clips"][arm][name] for name in METRICS}
    told = results["run"]
    (data,) = told["data"]
    assert (data["source"], data["view"], data["sessions"]) == ("simulated", "video", 2)
    assert 2 < data["seconds"] / data["operations"] < 5  # 0.3 of the real nine seconds
    assert told["test_users"] == ["U0108"]
    assert told["test_sessions"] == ["U0108/S0100"]
    assert (told["clips"], told["model"], told["quantization"]) == (5, "tiny", "nf4")
    assert told["model_digest"] == read_json(models[0] / "base.json")["digest"]
    assert told["adapter_digest"] == read_json(models[1] / "adapter.json")["digest"]


def test_the_real_run_reports_every_arm_on_every_test_clip(run: Path, shards: Path):
    report, records = read_json(run / "report.json"), read_clip_records(run / "records.jsonl")
    keys = ShardReader(shards, "test").keys
    assert [(one.clip_id, one.arm) for one in records] == [(key, arm) for key in keys for arm in ARMS]
    assert {one.clip_id for one in records if one.first} == set(keys[:5])
    assert len(keys) > 10 == 2 * SETTINGS.clips
    for part in ("all_clips", "all_clips_native"):
        assert list(report[part]) == ARMS
        assert all(set(figures) == FIGURES for figures in report[part].values())
    spoken = {arm: {name for name in METRICS if report["all_clips"][arm][name] is not None} for arm in ARMS}
    assert spoken == {
        BASE: set(METRICS),
        TUNED: set(METRICS),
        "whole_clip": {"tIoU@0.5"},
        "majority_class": {"OCA", "AA@1"},
        "transition_table": {"AA@1"},
        "transition_table_true": {"AA@1"},
    }
    assert report["counts"]["clips"] == len(keys)
    assert report["counts"]["boundary_clips"] == sum(
        bool(ShardReader(shards, "test").sample(index).clip.boundaries) for index in range(len(keys))
    )


def test_the_records_of_the_real_run_say_who_answered_what_and_how_sure(run: Path, models: tuple[Path, Path]):
    rows = {arm: [one for one in read_clip_records(run / "records.jsonl") if one.arm == arm] for arm in ARMS}
    base, adapter = (read_json(path)["digest"] for path in (models[0] / "base.json", models[1] / "adapter.json"))
    assert {one.model for one in rows[BASE]} == {base}
    assert {one.model for one in rows[TUNED]} == {f"{base}+{adapter}"}
    for one in rows[BASE] + rows[TUNED]:
        assert one.prompt
        for shares in (one.posterior.what, one.posterior.next):
            assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
        assert max(one.posterior.span, key=lambda part: part[2])[:2] == one.prediction.segment
        assert one.posterior.what[one.prediction.native.operation] == max(one.posterior.what.values())
    changed = [a.posterior.what != b.posterior.what for a, b in zip(rows[BASE], rows[TUNED], strict=True)]
    assert all(changed)  # the adapter was on the one and not on the other


def test_the_figures_follow_from_the_records_and_their_labels(run: Path, tmp_path: Path, monkeypatch, capsys):
    alone = shutil.copy(run / "records.jsonl", tmp_path)
    shutil.copy(run / "labels.json", tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate", "--records", str(alone)])
    evaluate.main()
    report = read_json(run / "report.json")
    report.pop("run")
    assert json.loads(capsys.readouterr().out) == report


def test_the_same_inputs_give_the_same_files(run: Path, models: tuple[Path, Path], shards: Path, tmp_path: Path):
    report = evaluate.evaluate(*models, shards, tmp_path / "again", SETTINGS, progress=ignore)
    assert folder_digests(tmp_path / "again") == folder_digests(run)
    assert json.loads(json.dumps(report)) == read_json(run / "report.json")


def test_an_adapter_of_another_base_is_refused_and_what_was_there_stays(
    run: Path, models: tuple[Path, Path], shards: Path, tmp_path: Path
):
    base, out = tmp_path / "base", tmp_path / "evaluation"
    shutil.copytree(models[0], base)
    shutil.copytree(run, out)
    write_json(base / "base.json", {**read_json(base / "base.json"), "digest": "of other weights"})
    with pytest.raises(DataError, match=r"adapter\.json: it was trained on tiny.*Train an adapter on this base"):
        evaluate.evaluate(base, models[1], shards, out, SETTINGS, progress=ignore)
    assert folder_digests(out) == folder_digests(run)


def test_shards_know_where_their_clips_come_from(shards: Path, tmp_path: Path):
    shutil.copytree(shards.parent / "clips", tmp_path / "clips")

    def write() -> list[dict[str, Any]]:
        return write_shards(tmp_path / "clips", tmp_path / "shards", ShardSettings())["data"]

    assert [one["source"] for one in write()] == ["simulated"]
    record = tmp_path / "clips/U0108/S0100/record.json"
    told = read_json(record)
    write_json(record, {**told, "summary": {**told["summary"], "source": "local", "view": "depth"}})
    assert [(one["source"], one["view"], one["sessions"]) for one in write()] == [
        ("local", "depth", 1),
        ("simulated", "video", 1),
    ]


@pytest.mark.parametrize("arguments", [["--base", "b"], ["--records", "r", "--out", "o"]])
def test_folders_go_together_and_records_stand_alone(arguments: list[str], monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    with pytest.raises(SystemExit, match="2"):
        evaluate.main()
    assert "alone" in capsys.readouterr().err
