"""Stages of the real graph that take no time: files of one line, real records, and a list of what was computed."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import dagster as dg

from assets.openpack import checks, pages, results
from pipelines.common.files import digest, write_json
from pipelines.common.incremental import Item, Record, Told, read_records, run_items, untold
from pipelines.common.settings import Settings
from resources.source import SourceResource
from resources.trainer import Trainer

UNSEEN = {"crf"}  # settings that this world's normalised video does not show: its content stays the same


@dataclass
class World:
    """What the fake stages are told and what they did. `sessions` is the release: user → session → content."""

    sessions: dict[str, dict[str, str]]
    computed: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)  # users on whom normalisation fails with a bug
    faulty: set[str] = field(default_factory=set)  # users whose video check fails
    scores: tuple[float, float] = (0.1, 0.9)  # AA@1 of base and tuned

    def users(self) -> list[str]:
        return sorted(self.sessions)

    def fingerprint(self, user: str) -> str:
        return digest(self.sessions[user])

    def fetch(self, user: str, out: Path, workers: int | None = None, progress: Told = untold) -> list[Record]:
        items = [Item(name, {"content": text}, text) for name, text in self.sessions[user].items()]
        return self._stage("raw_session", user, items, out, "1", lambda text: text)

    def normalise(self, user: str, raw: Path, out: Path, settings: Settings, **more: Any) -> list[Record]:
        if user in self.broken:
            raise RuntimeError(f"no luck with {user}")
        seen = {name: value for name, value in settings.model_dump().items() if name not in UNSEEN}
        return self._next("normalized_video", user, [raw], out, settings.digest(), seen)

    def clips(self, user: str, normalized: Path, raw: Path, out: Path, *settings: Any, **more: Any) -> list[Record]:
        recipe = digest([part.digest() for part in settings])
        return self._next("clips", user, [normalized, raw], out, recipe, recipe)

    def shards(self, clips: Path, out: Path, settings: Settings) -> dict[str, Any]:
        self.computed.append("shards")
        texts = [path.read_text() for path in sorted(clips.glob("*/*/text"))]
        write_json(out / "manifest.json", texts)
        shard = {"file": "a.tar", "digest": digest([texts, settings.digest()]), "bytes": 1}
        users = [path.name for path in clips.iterdir()]
        content = {"persons": {user: user for user in users}, "sessions": texts, "samples": texts, "shards": [shard]}
        return {"splits": {"train": content}, "set_aside": {}, "preparation": ""}

    def evaluate(
        self, base: Path, adapter: Path, shards: Path, out: Path, settings: Settings, progress: Callable, videos: Any
    ):
        self.computed.append("evaluation")
        base_model, finetuned_model = ({"AA@1": score} for score in self.scores)
        all_clips = {"base_model": base_model, "finetuned_model": finetuned_model}
        report: dict[str, Any] = {"all_clips": all_clips, "all_clips_native": all_clips}
        report["confusion"] = {"names": ["a", "b"], "counts": [[1, 2], [3, 4]]}
        write_json(out / "report.json", report)
        write_json(out / "results.json", all_clips)
        return report

    def bento(self, base: Path, adapter: Path) -> SimpleNamespace:
        self.computed.append("bento")
        return SimpleNamespace(tag="t:1", model_tag="m:1", digest="d", folder=adapter, bytes=1, files=[])

    def _next(self, stage: str, user: str, before: list[Path], out: Path, recipe: str, seen: Any) -> list[Record]:
        contents: dict[str, dict[str, str]] = {}
        for folder in before:
            for record in read_records(folder):
                contents.setdefault(record.name, {})[folder.parent.name] = record.content()
        items = [Item(name, inputs, before[0] / name / "text") for name, inputs in contents.items()]
        return self._stage(stage, user, items, out, recipe, lambda path: f"{path.read_text()} {seen}")

    def _stage(self, stage: str, user: str, items: list[Item], out: Path, recipe: str, text: Callable) -> list[Record]:
        def work(payload: str, folder: Path) -> dict[str, Any]:
            (folder / "text").write_text(text(payload))
            return {}

        def note(record: Record, computed: bool) -> None:
            if computed:
                self.computed.append(f"{stage} {user} {record.name}")

        return run_items(items, work, out, recipe, workers=1, progress=note)


def install(world: World, monkeypatch) -> dict[str, dg.ConfigurableResource]:
    """Puts the fakes in the place of the stages, which assets import when they run; returns resource overrides."""

    class FakeSource(SourceResource):
        def open(self, settings):
            return world

    class FakeTrainer(Trainer):
        def run(self, context, task: str, settings: Settings, **arguments: str) -> dict[str, Any]:
            world.computed.append(task)
            read = [json.loads(path.read_text()) for name in ("base", "shards") for path in _jsons(arguments.get(name))]
            write_json(Path(arguments["out"]) / "weights.json", [settings.digest(), read])
            return {"digest": digest([settings.digest(), read]), "losses": [[0, 2.0], [1, 1.0]]}

    def faults(raw: Path, folder: Path, settings: Settings) -> list[str]:
        return ["a frame is lost"] if folder.parent.name in world.faulty else []

    modules = {
        "pipelines.openpack.normalise": {"run_user": world.normalise},
        "pipelines.openpack.clips": {"run_user": world.clips},
        "pipelines.openpack.shards": {"write_shards": world.shards},
        "pipelines.openpack.loader": {
            "read_manifest": lambda shards: {"splits": {}},
            "verify": lambda shards: None,
        },
        "pipelines.openpack.evaluate": {
            "evaluate": world.evaluate,
            "Videos": SimpleNamespace(of=lambda folder, settings: folder),
        },
        "resources.bento": {"build": world.bento},
    }
    for name, members in modules.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
        package, _, last = name.rpartition(".")
        if package in sys.modules:
            monkeypatch.setattr(sys.modules[package], last, module, raising=False)
    monkeypatch.setattr(results, "service_code", lambda: "unchanged")  # other files may be edited while tests run
    monkeypatch.setattr(checks, "video_faults", faults)
    monkeypatch.setattr(checks, "label_faults", lambda folder: [])
    for picture in ("timeline", "video_frames", "keyframes"):
        monkeypatch.setattr(pages, picture, lambda records, out: "")
    return {"source": FakeSource(), "trainer": FakeTrainer()}


def _jsons(folder: str | None) -> list[Path]:
    return sorted(Path(folder).glob("*.json")) if folder else []
