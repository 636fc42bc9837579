"""Stage `evaluation`: base, tuned model and the baselines answer all test clips, and their answers become figures.

Belongs here: who answers, and the files. What is counted (`metrics`), what a record holds (`records`), how a model
answers (`predict`, the code of the service) and what a baseline says (`baselines`) do not. Test clips are answered and
scored and touch no choice; baselines are fitted on the train split.

Format of `<out>/`, free of times, so that the same answers give the same bytes:

    results.json    `base_model` and `finetuned_model`, each {OCA, tIoU@0.5, AA@1} on the first clips by clip_id and in
                    the brief's names, and `run`
    report.json     `metrics.report_figures` and `run`: on what data, with which models
    records.jsonl   one `records.ClipRecord` a clip and arm: clips by id, arms in the order of the report
    labels.json     the `Taxonomy` of the records' ids
    settings.json   the effective settings
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipelines.common.console import run
from pipelines.common.errors import DataError
from pipelines.common.files import atomic_folder, digest, write_json
from pipelines.common.storage import local_folder
from pipelines.openpack.baselines import Baselines, fit
from pipelines.openpack.finetune import ADAPTER, Adapter, read_adapter
from pipelines.openpack.loader import Sample, ShardReader, read_manifest
from pipelines.openpack.metrics import BASE, BRIEF_METRICS, TUNED, report_figures
from pipelines.openpack.pretrain import BaseModel, read_base
from pipelines.openpack.prompt import prompt_text
from pipelines.openpack.records import ClipRecord, Posterior, Reading, read_clip_records, reading, write_clip_records
from pipelines.openpack.settings import EvaluationSettings, load_settings
from pipelines.openpack.taxonomy import LABELS, Taxonomy

if TYPE_CHECKING:
    from pipelines.common.vlm.dialogue import Question
    from pipelines.openpack.predict import Prediction

RECORDS, REPORT, RESULTS, SETTINGS = "records.jsonl", "report.json", "results.json", "settings.json"
DIGITS = 6  # of a share in the records

Say = Callable[[str], None]


class Answerer(Protocol):
    """What is evaluated: a `Predictor`, or anything that answers questions as one."""

    size: int | None

    def answer(self, clip_ids: Sequence[str], questions: Sequence[Question]) -> list[Prediction]: ...


def evaluate(
    base: Path, adapter: Path, shards: Path, out: Path, settings: EvaluationSettings, progress: Say = print
) -> dict[str, Any]:
    """Writes `out`, replacing it in one step, and returns the report.

    `base`, `adapter` and `shards` are the folders of these stages. DataError where the adapter is another base's, where
    a shard is damaged, or where there is no training or test clip; `out` then stays as it was.
    """
    from pipelines.openpack.predict import Predictor

    base_model, tuned = read_base(base), read_adapter(adapter)
    if tuned.base_digest != base_model.digest:
        what = f"it was trained on {tuned.base} ({tuned.base_digest}), here is {base_model.name} ({base_model.digest})"
        raise DataError(what, file=adapter / ADAPTER, cure="Train an adapter on this base, or name its own base.")
    train, test = ShardReader(shards, "train"), ShardReader(shards, "test")
    taxonomy = Taxonomy.read(shards / LABELS)
    run = _run(base_model, tuned, shards, taxonomy, len(test), settings)
    baselines = fit((train.sample(index).clip.target for index in range(len(train))), taxonomy)
    models = {BASE: base_model.digest, TUNED: f"{base_model.digest}+{tuned.digest}"}
    adapters = {BASE: None, TUNED: adapter}
    predictors = {arm: Predictor.load(base, adapters[arm], taxonomy, settings) for arm in adapters}
    records = list(answer_clips(predictors, baselines, test, settings, models, progress))
    report = {**report_figures(records, taxonomy), "run": run}
    with atomic_folder(out) as folder:
        write_clip_records(folder / RECORDS, records)
        write_json(folder / REPORT, report)
        write_json(folder / RESULTS, results(report))
        write_json(folder / LABELS, taxonomy.as_json())
        settings.save(folder / SETTINGS)
    for arm in predictors:
        progress(f"{arm} on all {len(test)} test clips: {json.dumps(report['all_clips'][arm])}")
    return report


def results(report: Mapping[str, Any]) -> dict[str, Any]:
    """What `results.json` holds: the brief's three metrics of both models on the first clips, and what was run."""
    models = {arm: {name: report["first_clips"][arm][name] for name in BRIEF_METRICS} for arm in (BASE, TUNED)}
    return {**models, "run": report["run"]}


def answer_clips(
    predictors: Mapping[str, Answerer],
    baselines: Baselines,
    test: ShardReader,
    settings: EvaluationSettings,
    models: Mapping[str, str],
    progress: Say,
) -> Iterator[ClipRecord]:
    """Records of all test clips, arm by arm for each: `predictors` in their order, then the baselines.

    `predictors` must have TUNED among them, whose operation the transition table is given; `models` says by arm which
    weights answered. Each clip is decoded once for all, a batch at a time, so that memory does not grow with the test
    split.
    """
    from pipelines.openpack.predict import clip_question, sample_frames

    (size,) = {predictor.size for predictor in predictors.values()}
    for start in range(0, len(test), settings.batch_size):
        batch = [test.sample(index) for index in range(start, min(start + settings.batch_size, len(test)))]
        questions = [
            clip_question(sample_frames(sample, size), sample.clip.keyframes, baselines.taxonomy) for sample in batch
        ]
        keys = [sample.key for sample in batch]
        answers = {arm: predictor.answer(keys, questions) for arm, predictor in predictors.items()}
        for index, sample in enumerate(batch):
            predictions = {arm: answers[arm][index] for arm in predictors}
            yield from _records(sample, predictions, baselines, models, start + index < settings.clips)
        progress(f"{start + len(batch)} of {len(test)} test clips answered")


def _records(
    sample: Sample,
    predictions: Mapping[str, Prediction],
    baselines: Baselines,
    models: Mapping[str, str],
    first: bool,
) -> Iterator[ClipRecord]:
    clip, target, taxonomy = sample.clip, sample.clip.target, baselines.taxonomy
    prompt = digest(prompt_text(clip.keyframes, taxonomy).encode())
    of_clip = clip.model_dump(include={"clip_id", "n_frames", "kind", "boundaries", "bounds", "pairs"})
    truth = reading(taxonomy, target.operation, (target.start, target.end), target.next)

    def record(arm: str, said: Reading, **of_model: Any) -> ClipRecord:
        return ClipRecord(**of_clip, arm=arm, first=first, truth=truth, prediction=said, **of_model)

    for arm, one in predictions.items():
        said = reading(taxonomy, one.operation, (one.start, one.end), one.next)
        yield record(arm, said, posterior=_posterior(one), prompt=prompt, model=models[arm])
    yield record("whole_clip", baselines.whole_clip(clip.n_frames))
    yield record("majority_class", baselines.majority_class())
    yield record("transition_table", baselines.transition_table(predictions[TUNED].operation))
    yield record("transition_table_true", baselines.transition_table(target.operation))


def _posterior(prediction: Prediction) -> Posterior:
    def rounded(shares: Mapping[int, float]) -> dict[int, float]:
        return {op_id: round(share, DIGITS) for op_id, share in shares.items()}

    span = tuple((start, end, round(share, DIGITS)) for (start, end), share in prediction.span.items())
    return Posterior(what=rounded(prediction.what), next=rounded(prediction.next_share), span=span)


def _run(
    base: BaseModel, adapter: Adapter, shards: Path, taxonomy: Taxonomy, clips: int, settings: EvaluationSettings
) -> dict[str, Any]:
    """What stands behind the figures. `data` is the shards' own word on where all their clips come from."""
    manifest = read_manifest(shards)
    test = manifest["splits"]["test"]
    return {
        "data": manifest["data"],
        "test_users": sorted(test["persons"]),
        "test_sessions": test["sessions"],
        "test_shards": [shard["digest"] for shard in test["shards"]],
        "clips": min(settings.clips, clips),
        "clips_in_test": clips,
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
    parser.add_argument("--preset", help="settings of pipelines/openpack/presets; else as VLM asks")
    parser.add_argument("--settings", type=Path, help="a settings.toml, on top of the preset")
    parser.add_argument("--records", type=Path, help="a records.jsonl: print its figures again, answer nothing")
    arguments = parser.parse_args()
    folders = [arguments.base, arguments.adapter, arguments.shards, arguments.out]
    if arguments.records:
        if any(folders):
            parser.error("--records stands alone: the figures follow from the records")
        taxonomy = Taxonomy.read(arguments.records.with_name(LABELS))
        print(json.dumps(report_figures(read_clip_records(arguments.records), taxonomy), indent=1))
        return
    if not all(folders):
        parser.error("--base, --adapter, --shards and --out go together; or give --records alone")
    settings = load_settings(arguments.settings, preset=arguments.preset).evaluation
    base, adapter, shards = (local_folder(one) for one in (arguments.base, arguments.adapter, arguments.shards))
    evaluate(base, adapter, shards, arguments.out, settings)


if __name__ == "__main__":
    run(main)
