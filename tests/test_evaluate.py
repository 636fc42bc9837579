"""The stage evaluation: answers to records to figures, with models that are known, and with real ones at toy size."""

import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import kills
import pytest
import torch

from pipelines.common.errors import DataError
from pipelines.common.files import file_digest, folder_digests, read_json, read_jsonl, write_json
from pipelines.common.vlm.load import load
from pipelines.common.vlm.lora import put_lora
from pipelines.common.vlm.settings import LoraSettings
from pipelines.openpack import evaluate
from pipelines.openpack.answer_work import Asked
from pipelines.openpack.answering import answers
from pipelines.openpack.boxes import Stretch
from pipelines.openpack.finetune import Adapter
from pipelines.openpack.grammar import Grammar
from pipelines.openpack.loader import ShardReader
from pipelines.openpack.metrics import BASE, TUNED
from pipelines.openpack.predict import Predictor
from pipelines.openpack.preparation import PREPARATION
from pipelines.openpack.pretrain import read_base
from pipelines.openpack.records import read_clip_records
from pipelines.openpack.sequences import read_sessions
from pipelines.openpack.settings import (
    AllSettings,
    EvaluationSettings,
    ShardSettings,
    SimulationSettings,
)
from pipelines.openpack.shards import write_shards
from pipelines.openpack.taxonomy import OPENPACK
from pipelines.openpack.timeline_metrics import scores
from pipelines.openpack.whole_sessions import Videos

MODELS = [BASE, TUNED, "finetuned_uncalibrated", "blind", "shuffled_frames", "uniform_frames"]
ARMS = [*MODELS, "whole_clip", "majority_class", "transition_table", "transition_table_true"]
METRICS = ["OCA", "tIoU@0.5", "AA@1"]
FIGURES = {*METRICS, "mean_tIoU", "mean_tIoU_boundary", "median_boundary_error_frames"}
FIGURES |= {"tIoU@0.7", "tIoU@0.9", "macro_F1", "ECE", "Brier", "no_segment"}
SCOPES = ["all_clips", "all_clips_native", "first_clips", "first_clips_native"]
SETTINGS = EvaluationSettings(clips=5, batch_size=4, device="cpu")


@pytest.fixture(scope="module")
def shards(toy_shards: Path) -> Path:
    return toy_shards


@pytest.fixture(scope="module")
def models(toy_base: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
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
    shutil.copy(shards / PREPARATION, adapter)
    return toy_base, adapter


@pytest.fixture(scope="module")
def videos(shards: Path) -> Videos:
    """The toy sessions' own, and how they were drawn."""
    simulation = SimulationSettings(sessions=1, boxes=1, duration_scale=0.3, width=160, height=120)
    return Videos.of(shards.parent / "normalized_video", AllSettings(simulation=simulation))


@pytest.fixture(scope="module")
def run(models: tuple[Path, Path], shards: Path, videos: Videos, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "evaluation"
    evaluate.evaluate(*models, shards, out, SETTINGS, progress=ignore, videos=videos)
    return out


def ignore(line: str) -> None:
    pass


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
    assert told["users"] == ["U0108"]
    assert told["sessions"] == ["U0108/S0100"]
    assert (told["clips"], told["model"], told["quantization"]) == (5, "tiny", "nf4")
    assert told["model_digest"] == read_json(models[0] / "base.json")["digest"]
    assert told["adapter_digest"] == read_json(models[1] / "adapter.json")["digest"]


def test_the_real_run_reports_every_arm_on_every_test_clip(run: Path, shards: Path):
    report, records = read_json(run / "report.json"), read_clip_records(run / "records.jsonl")
    keys = ShardReader(shards, "test").keys
    assert [(one.clip_id, one.arm) for one in records] == [(key, arm) for key in keys for arm in ARMS]
    assert {one.clip_id for one in records if one.first} == set(keys[:5])
    assert len(keys) > 10 == 2 * SETTINGS.clips
    for scope in SCOPES:
        assert list(report[scope]) == list(report["bootstrap"][scope]) == ARMS
        assert all(set(figures) - {"intervals"} == FIGURES for figures in report[scope].values())
        assert list(report["mcnemar"][scope]) == METRICS
    spoken = {arm: {name for name in METRICS if report["all_clips"][arm][name] is not None} for arm in ARMS}
    assert spoken == {
        **{arm: set(METRICS) for arm in MODELS},
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
    assert {one.model for arm in MODELS[1:] for one in rows[arm]} == {f"{base}+{adapter}"}
    assert {one.session for one in rows[BASE]} == {"U0108/S0100"}
    for one in (one for arm in MODELS for one in rows[arm]):
        assert one.confidence.native == pytest.approx(one.posterior.what[one.prediction.native.operation], abs=1e-5)
        assert one.confidence.native <= one.confidence.brief <= 1
        assert one.prompt
        for shares in (*one.posterior.seen, one.posterior.what, one.posterior.next):
            assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
        assert len(one.posterior.seen) == len(one.pairs)
        assert max(one.posterior.span, key=lambda part: part[2])[:2] == one.prediction.segment
        assert one.posterior.what[one.prediction.native.operation] == max(one.posterior.what.values())
    changed = [a.posterior.what != b.posterior.what for a, b in zip(rows[BASE], rows[TUNED], strict=True)]
    assert all(changed)  # the adapter was on the one and not on the other


def test_the_base_answers_as_one_that_was_loaded_without_the_adapter(models: tuple[Path, Path], shards: Path):
    base, adapter = models
    tuned = Predictor.load(base, adapter, OPENPACK, SETTINGS)
    reader = ShardReader(shards, "test")
    samples = [reader.sample(index) for index in range(3)]
    said = tuned.answer_samples(samples)
    alone = Predictor.load(base, None, OPENPACK, SETTINGS)
    assert tuned.without_adapter().answer_samples(samples) == alone.answer_samples(samples)
    assert tuned.answer_samples(samples) == said  # it is on again
    assert tuned.without_adapter().answer_samples(samples) != said


def test_the_figures_follow_from_the_records_and_their_labels(run: Path, tmp_path: Path, monkeypatch, capsys):
    alone = shutil.copy(run / "records.jsonl", tmp_path)
    shutil.copy(run / "labels.json", tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate", "--records", str(alone)])
    evaluate.main()
    report = read_json(run / "report.json")
    report = {name: part for name, part in report.items() if name not in ("run", "whole_sessions")}
    assert json.loads(capsys.readouterr().out) == report


def test_whole_test_sessions_are_answered_and_held_against_their_labels(run: Path, shards: Path):
    told, rows = read_json(run / "report.json")["whole_sessions"], read_jsonl(run / "timelines.jsonl")
    assert [(row["session"], row["planted"]) for row in rows] == [("U0108/S0100", False), ("U0108/S0100", True)]
    assert list(told["timelines"]) == ["U0108/S0100"]
    (labelled,) = read_sessions(shards, "test")
    for row in rows:
        truth, said = ([Stretch(*one) for one in row[name]] for name in ("truth", "said"))
        assert (said[0].start, said[-1].end) == (0, row["frames"])
        assert len(row["deviations"]) == row["planted"]  # one in its one box
        assert (tuple(truth) == labelled.stretches) != row["planted"]
        if not row["planted"]:
            assert told["timelines"][row["session"]]["decoded"] == scores(truth, said)
            assert told["mean"]["alone"] == scores(truth, [Stretch(*one) for one in row["alone"]])
    assert list(told["alerts"]) == ["labels", "drawn", "answered"]
    assert sum(one["planted"] for one in told["alerts"]["answered"].values()) == 1
    grammar = Grammar.load(run / "grammar.json")
    assert OPENPACK.by_id(grammar.first).name == "Picking"
    assert told["why"] == grammar.why  # toy shards have no validation user


def test_without_videos_no_session_is_answered_as_a_whole(models: tuple[Path, Path], shards: Path, tmp_path: Path):
    report = evaluate.evaluate(*models, shards, tmp_path / "without", SETTINGS, progress=ignore)
    assert (report["whole_sessions"]["timelines"], report["whole_sessions"]["mean"]) == ({}, None)
    assert list(report["whole_sessions"]["alerts"]) == ["labels"]
    assert read_jsonl(tmp_path / "without" / "timelines.jsonl") == []
    assert "None was answered as a whole" in (tmp_path / "without" / "report.html").read_text()


def test_the_same_inputs_give_the_same_files(
    run: Path, models: tuple[Path, Path], shards: Path, videos: Videos, tmp_path: Path
):
    report = evaluate.evaluate(*models, shards, tmp_path / "again", SETTINGS, progress=ignore, videos=videos)
    assert folder_digests(tmp_path / "again") == folder_digests(run)
    assert json.loads(json.dumps(report)) == read_json(run / "report.json")


def test_two_processes_give_the_same_files(
    run: Path, models: tuple[Path, Path], shards: Path, videos: Videos, tmp_path: Path
):
    settings, out = SETTINGS.model_copy(update={"processes": 2}), tmp_path / "evaluation"
    evaluate.evaluate(*models, shards, out, settings, progress=ignore, videos=videos)
    two, one = folder_digests(out), folder_digests(run)
    assert {name for name, found in two.items() if found != one[name]} == {"settings.json"}
    assert list(tmp_path.iterdir()) == [out]


def test_a_killed_evaluation_goes_on_after_the_last_batch_that_was_whole(
    run: Path, models: tuple[Path, Path], shards: Path, videos: Videos, tmp_path: Path
):
    out = tmp_path / "evaluation"
    arguments = (*models, shards, out, SETTINGS, ignore, videos)
    kills.run_and_kill(0, evaluate.evaluate, *arguments, root=tmp_path, after="clips-00001")
    (kept,) = (tmp_path / "evaluation.answers").iterdir()
    done = sorted(path.name for path in kept.glob("*.json"))
    assert done == ["clips-00000.json", "drawn-U0108.json", "session-U0108-S0100.json"]
    (kept / "session-U0108-S0100.json").unlink()  # as if it had been killed within that session
    lines: list[str] = []
    evaluate.evaluate(*arguments[:5], lines.append, videos)
    assert lines[0].startswith("2 of ")
    assert not any("drawn" in line or "clips-00000" in line for line in lines)
    assert folder_digests(out) == folder_digests(run)
    assert list(tmp_path.iterdir()) == [out]


def test_answers_of_other_models_or_settings_are_not_gone_on_with(models, shards: Path, tmp_path: Path):
    asked = Asked(*models, shards, SETTINGS, "test", None)
    other = replace(asked, settings=SETTINGS.model_copy(update={"hypotheses": 3}))
    assert asked.key() != other.key()
    assert asked.key() == replace(asked, settings=SETTINGS.model_copy(update={"processes": 2})).key()
    stale = tmp_path / "evaluation.answers" / other.key() / "clips-00000.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    with answers(asked, tmp_path / "evaluation", ignore) as made:
        assert not stale.exists()
        assert sum(len(said[TUNED]) for _, said in made.clips()) == len(ShardReader(shards, "test"))


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


def test_the_split_that_is_asked_for_is_answered_or_its_lack_told(models, shards: Path, tmp_path: Path):
    with pytest.raises(DataError, match="the split val has no samples"):
        evaluate.evaluate(*models, shards, tmp_path / "out", SETTINGS, progress=ignore, split="val")
    assert not (tmp_path / "out").exists()


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


def test_the_readable_report_opens_without_scripts_and_loads_nothing(run: Path, tmp_path: Path):
    chromium = Path("/usr/bin/chromium")
    if not chromium.is_file():
        pytest.skip("no Chromium at /usr/bin/chromium")
    from playwright.sync_api import sync_playwright

    page_file, report = run / "report.html", read_json(run / "report.json")
    assert page_file.stat().st_size < 1_000_000
    assert "<script" not in page_file.read_text()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 800}, java_script_enabled=False)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(page_file.as_uri())
        assert {url for url in asked if not url.startswith("data:")} == {page_file.as_uri()}
        shown = [page.locator("figure img").nth(index) for index in range(page.locator("figure img").count())]
        sizes = [picture.bounding_box() for picture in shown]
        rows = page.locator("tr.tuned").first.locator("td").all_inner_texts()
        text = page.locator("body").inner_text()
        browser.close()
    assert len(shown) >= 4  # confusion, reliability, a session, at least one wrong clip of a model that knows nothing
    assert all(size and size["width"] > 200 and size["height"] > 100 for size in sizes)
    tuned = report["all_clips"][TUNED]
    assert float(rows[0].split()[0]) == pytest.approx(tuned["OCA"], abs=5e-4)
    assert len(rows) == len(tuned)
    for said in (*ARMS, "drawn, not recorded", "All clips are of one session", "U0108/S0100", "Exact McNemar"):
        assert said in text
