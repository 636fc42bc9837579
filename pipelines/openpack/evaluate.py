"""Stage `evaluation`: base, tuned model, controls and baselines answer all test clips; answers become figures.

Belongs here: the order of things, and the files. Who answers (`arms`), in which processes (`answering`), what is
counted (`metrics`, `summary`), what a record holds (`records`), whole sessions (`whole_sessions`), what a person gets
to read (`report`) and how a model answers (`predict`, the code of the service) do not. Test clips are answered and
scored and touch no choice: baselines and transitions are counted on the train split, the grammar on its sessions;
calibration and thresholds are chosen on the validation split.

Format of `<out>/`, free of times, so that the same answers give the same bytes:

    results.json    `base_model` and `finetuned_model`, each {OCA, tIoU@0.5, AA@1} on the first clips by clip_id and in
                    the brief's names, and `run`
    report.json     `summary.report_figures`, `run`: on what data, with which models, and `whole_sessions`: see there
    report.html     the same for people, with pictures: see `report`
    records.jsonl   one `records.ClipRecord` a clip and arm: clips by id, arms in the order of the report
    labels.json     the `Taxonomy` of the records' ids
    preparation.json  the `Preparation` of the clips that were answered
    timelines.jsonl   the sessions that were answered as a whole, a line each: see `whole_sessions`
    calibration.json  the `Calibration` of the tuned model
    grammar.json    the `Grammar` of the training sessions
    settings.json   the effective settings
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.common.console import run
from pipelines.common.errors import DataError
from pipelines.common.files import atomic_folder, write_json, write_jsonl
from pipelines.common.locks import output_lock
from pipelines.common.storage import local_folder
from pipelines.openpack.answer_work import Asked
from pipelines.openpack.answering import Answers, answers
from pipelines.openpack.arms import calibrated, clip_records
from pipelines.openpack.baselines import Baselines, fit
from pipelines.openpack.calibrate import CALIBRATION, Calibration, calibrate, count_transitions
from pipelines.openpack.effective import in_effect
from pipelines.openpack.finetune import ADAPTER, Adapter, read_adapter, require_room_to_answer
from pipelines.openpack.grammar import GRAMMAR
from pipelines.openpack.loader import ShardReader, read_manifest
from pipelines.openpack.metrics import BASE, BRIEF_METRICS, TUNED
from pipelines.openpack.preparation import PREPARATION, Preparation, read_preparation, require_same
from pipelines.openpack.pretrain import BaseModel, read_base, recorded_model
from pipelines.openpack.records import ClipRecord, read_clip_records, write_clip_records
from pipelines.openpack.report import PAGE, write_page
from pipelines.openpack.settings import EvaluationSettings
from pipelines.openpack.splits import Split
from pipelines.openpack.summary import report_figures
from pipelines.openpack.taxonomy import LABELS, Taxonomy
from pipelines.openpack.whole_sessions import Videos, as_answered, learn_grammar, session_figures

RECORDS, REPORT, RESULTS, SETTINGS = "records.jsonl", "report.json", "results.json", "settings.json"
TIMELINES = "timelines.jsonl"

Say = Callable[[str], None]


def evaluate(
    base: Path,
    adapter: Path,
    shards: Path,
    out: Path,
    settings: EvaluationSettings,
    progress: Say = print,
    videos: Videos | None = None,
    split: Split = "test",
) -> dict[str, Any]:
    """Writes `out`, replacing it in one step, and returns the report.

    `base`, `adapter` and `shards` are the folders of these stages. Whole test sessions are answered where there are
    `videos` of them. `split` is whose clips are answered: `val` is for choosing settings, and its figures are no
    result, since the calibration was fitted on its clips. DataError where the adapter is another base's or was trained
    on clips that were prepared in another way, where a shard is damaged, where there is no clip to train on or to
    answer, or where a video is missing; SetupError where the model does not fit its GPU. `out` then stays as it was,
    and what was answered until then is kept beside it, for the next evaluation of the same: see `answering`. Waits
    while another process writes there.
    """
    with output_lock(out, progress):
        return _evaluate(base, adapter, shards, out, settings, progress, videos, split)


def _evaluate(
    base: Path,
    adapter: Path,
    shards: Path,
    out: Path,
    settings: EvaluationSettings,
    progress: Say,
    videos: Videos | None,
    split: Split,
) -> dict[str, Any]:
    from pipelines.common.vlm.lora import read_lora

    base_model, tuned = read_base(base), read_adapter(adapter)
    if tuned.base_digest != base_model.digest:
        what = f"it was trained on {tuned.base} ({tuned.base_digest}), here is {base_model.name} ({base_model.digest})"
        raise DataError(what, file=adapter / ADAPTER, cure="Train an adapter on this base, or name its own base.")
    require_room_to_answer(base, settings, read_lora(adapter), progress)
    test, taxonomy = ShardReader(shards, split), Taxonomy.read(shards / LABELS)
    require_same(
        test.preparation,
        read_preparation(adapter, "adapter"),
        "the adapter was trained on clips that were prepared in another way",
        adapter / PREPARATION,
        "Train an adapter on these shards, or name its own shards.",
    )
    run = _run(base_model, tuned, test.preparation, shards, taxonomy, split, settings)
    models = {BASE: base_model.digest, TUNED: f"{base_model.digest}+{tuned.digest}"}
    grammar = learn_grammar(shards, taxonomy)
    train = ShardReader(shards, "train")
    clips = [train.sample(index).clip for index in range(len(train))]
    baselines = fit((clip.target for clip in clips), taxonomy)
    asked = Asked(base, adapter, shards, settings, split, videos)
    with answers(asked, out, progress) as answered:
        transitions = count_transitions(clips, taxonomy)
        calibration = calibrate(answered.calibration(), settings, shards, transitions, taxonomy, progress)
        records = list(_records(answered, calibration, baselines, test, settings, models))
        whole = [
            as_answered(
                name, planted, row, calibration, grammar, taxonomy, settings.timeline, test.preparation.clip_format
            )
            for name, planted, row in answered.sessions()
        ]
        sessions = session_figures(whole, shards, grammar)
        report = {**report_figures(records, taxonomy), "whole_sessions": sessions, "run": run}
        with atomic_folder(out) as folder:
            write_clip_records(folder / RECORDS, records)
            write_json(folder / REPORT, report)
            write_json(folder / RESULTS, results(report))
            write_json(folder / LABELS, taxonomy.as_json())
            test.preparation.save(folder / PREPARATION)
            write_jsonl(folder / TIMELINES, [one.as_row() for one in whole])
            calibration.save(folder / CALIBRATION)
            grammar.save(folder / GRAMMAR)
            settings.save(folder / SETTINGS)
            write_page(folder / PAGE, report, records, taxonomy, test, whole)
    if sessions["mean"]:
        progress(f"timelines of {len(sessions['timelines'])} test sessions: {json.dumps(sessions['mean']['decoded'])}")
    for arm in (BASE, TUNED):
        progress(f"{arm} on all {len(test)} {split} clips: {json.dumps(report['all_clips'][arm])}")
    return report


def results(report: Mapping[str, Any]) -> dict[str, Any]:
    """What `results.json` holds: the brief's three metrics of both models on the first clips, and what was run."""
    models = {arm: {name: report["first_clips"][arm][name] for name in BRIEF_METRICS} for arm in (BASE, TUNED)}
    return {**models, "run": report["run"]}


def _records(
    answered: Answers,
    calibration: Calibration,
    baselines: Baselines,
    test: ShardReader,
    settings: EvaluationSettings,
    models: Mapping[str, str],
) -> Iterator[ClipRecord]:
    """Records of all test clips."""
    for part, said in answered.clips():
        after = calibrated(said, calibration)
        for place, number in enumerate(part.numbers):
            one = {arm: rows[place] for arm, rows in after.items()}
            yield from clip_records(test.sample(number), one, baselines, models, first=number < settings.clips)


def _run(
    base: BaseModel,
    adapter: Adapter,
    preparation: Preparation,
    shards: Path,
    taxonomy: Taxonomy,
    split: Split,
    settings: EvaluationSettings,
) -> dict[str, Any]:
    """What stands behind the figures. `data` is the shards' own word on where all their clips come from."""
    manifest = read_manifest(shards)
    answered = manifest["splits"][split]
    return {
        "data": manifest["data"],
        "clip_format": preparation.clip_format.model_dump(mode="json"),
        "split": split,
        "users": sorted(answered["persons"]),
        "sessions": answered["sessions"],
        "shards": [shard["digest"] for shard in answered["shards"]],
        "clips": min(settings.clips, len(answered["samples"])),
        "clips_in_split": len(answered["samples"]),
        "label_set": taxonomy.about,
        "labels": list(taxonomy.brief),
        "model": base.name,
        "model_parameters": base.parameters,
        "model_digest": base.digest,
        "adapter_digest": adapter.digest,
        "quantization": settings.quantization,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer and score the test clips, or score the answers of a file.")
    parser.add_argument("--base", help="folder of the stage base_model, or the URL of a published one")
    parser.add_argument("--adapter", help="folder of the stage adapter, or the URL of a published one")
    parser.add_argument("--shards", help="folder of the stage shards, or the URL of a published one")
    parser.add_argument("--out", type=Path, help="for example data/evaluation; what lies there is replaced")
    parser.add_argument("--videos", type=Path, help="folder of the stage normalized_video: answer whole sessions too")
    parser.add_argument("--preset", help="of pipelines/openpack/presets; else PRESET, else that of the base model")
    parser.add_argument("--settings", type=Path, help="a settings.toml, on top of the preset")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="val: to choose settings by")
    parser.add_argument("--records", type=Path, help="a records.jsonl: print its figures again, answer nothing")
    arguments = parser.parse_args()
    folders = [arguments.base, arguments.adapter, arguments.shards, arguments.out]
    if arguments.records:
        if any([*folders, arguments.videos]):
            parser.error("--records stands alone: the figures follow from the records")
        taxonomy = Taxonomy.read(arguments.records.with_name(LABELS))
        print(json.dumps(report_figures(read_clip_records(arguments.records), taxonomy), indent=1))
        return
    if not all(folders):
        parser.error("--base, --adapter, --shards and --out go together; or give --records alone")
    if arguments.videos and arguments.split != "test":
        parser.error("--videos are those of test sessions")
    base, adapter, shards = (local_folder(one) for one in (arguments.base, arguments.adapter, arguments.shards))
    chosen = {"path": arguments.settings, "preset": arguments.preset, "model": recorded_model(base)}
    settings = in_effect("evaluation", **chosen)
    videos = Videos.of(arguments.videos, settings) if arguments.videos else None
    evaluate(base, adapter, shards, arguments.out, settings.evaluation, videos=videos, split=arguments.split)


if __name__ == "__main__":
    run(main)
