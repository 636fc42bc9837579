"""Which settings are in effect: the order of flags, variables, records and files, and how it is told."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from pipelines.common import machine
from pipelines.common.errors import DataError, SetupError
from pipelines.common.files import write_json
from pipelines.common.machine import Gpu
from pipelines.openpack import effective as module
from pipelines.openpack.as_evaluated import answer_settings
from pipelines.openpack.effective import Model, effective, fitting_preset, in_effect
from pipelines.openpack.pretrain import BaseModel, recorded_model
from pipelines.openpack.settings import EvaluationSettings, FinetuneSettings, load_settings

ROOT = Path(__file__).parents[1]
NAMED = Model("Qwen/Qwen2-VL-2B-Instruct", "base.json says so")
EMBEDDED = Model("tiny", "base.json says so")
H200, T4 = Gpu("NVIDIA H200", 150_000_000_000), Gpu("Tesla T4", 16_100_000_000)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "gpus", list)


def base(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "base.json", asdict(BaseModel(name, "" if name == "tiny" else name, "d", 1, [])))
    return folder


# --- the preset ---


@pytest.mark.parametrize(
    ("flag", "variables", "model", "preset"),
    [
        (None, {}, None, "tiny"),
        (None, {"VLM": "Qwen/Qwen2-VL-2B-Instruct"}, None, "t4"),
        (None, {}, NAMED, "t4"),  # the record decides where VLM says nothing, or something else
        (None, {"VLM": "tiny"}, NAMED, "t4"),
        (None, {"VLM": "Qwen/Qwen2-VL-2B-Instruct"}, EMBEDDED, "tiny"),
        (None, {"PRESET": "a100"}, NAMED, "a100"),
        ("h100", {"PRESET": "a100"}, NAMED, "h100"),
    ],
)
def test_the_preset_is_that_of_flag_variable_record_or_vlm(monkeypatch, flag, variables, model, preset):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    made = effective(preset=flag, model=model)
    assert made.preset == preset
    assert made.settings.finetune == load_settings(preset=preset).finetune


def test_a_named_model_is_never_trained_with_the_settings_of_the_embedded_one(tmp_path, monkeypatch):
    folder = base(tmp_path / "base_model", NAMED.name)
    made = effective(model=recorded_model(folder)).settings.finetune
    assert (made.device, made.lora.rank, made.loop.optimiser) == ("auto", 16, "adamw")
    monkeypatch.setenv("PRESET", "tiny")
    with pytest.raises(
        SetupError, match=r"preset tiny \(PRESET=tiny\) is for the embedded model.*Take one of a100, h100"
    ):
        effective(model=recorded_model(folder))


def test_the_embedded_model_is_never_trained_with_the_settings_of_a_named_one():
    with pytest.raises(SetupError, match=r"preset t4 \(--preset\) is for named models, and this is the embedded one"):
        effective(preset="t4", model=EMBEDDED)


def test_training_by_hand_takes_the_preset_of_the_recorded_base(tmp_path):
    """The command itself, as far as it comes without weights: it says its settings first."""
    folder = base(tmp_path / "base_model", NAMED.name)
    command = [sys.executable, "-m", "pipelines.openpack.finetune", "--base", str(folder)]
    done = subprocess.run(
        [*command, "--shards", str(tmp_path), "--out", "o", "--preset", "tiny"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "the preset tiny (--preset) is for the embedded model, and this is Qwen/Qwen2-VL-2B-Instruct" in done.stderr


def test_the_default_of_a_named_model_is_said_with_what_would_fit_better(monkeypatch):
    monkeypatch.setattr(module, "gpus", lambda: [H200])
    line = effective(model=NAMED).lines("finetune")[0]
    assert "preset t4 (the default for Qwen/Qwen2-VL-2B-Instruct" in line
    assert "THIS MACHINE HAS NVIDIA H200, 150 GB, for which h100 is made" in line
    monkeypatch.setattr(module, "gpus", lambda: [T4])
    assert "this machine has Tesla T4, 16 GB" in effective(model=NAMED).lines("finetune")[0]


@pytest.mark.parametrize(
    ("found", "preset"),
    [([H200], "h100"), ([T4], "t4"), ([T4, T4], "t4x2"), ([Gpu("A100", 42_900_000_000)], "a100"), ([H200, T4], "t4x2")],
)
def test_the_preset_that_fits_is_the_one_whose_card_is_nearest_below(found, preset):
    assert fitting_preset(found) == preset


def test_a_preset_that_there_is_not_is_told_with_those_that_there_are():
    with pytest.raises(SetupError, match="The presets are a100, h100, t4, t4x2, tiny"):
        effective(preset="t5")


# --- files and values ---


def test_each_value_is_told_with_where_it_came_from(tmp_path, monkeypatch):
    Path("settings.toml").write_text('[keyframes]\nmethod = "motion"\n[finetune.loop]\nsteps = 20\nsave_steps = 50\n')
    first, preset, file = effective().lines()
    assert first.startswith("settings: preset tiny (that of the embedded model; VLM is not set), ")
    assert first.endswith("file settings.toml (in the working directory)")
    assert preset.startswith("    preset tiny: finetune.processes = 2")
    assert 'finetune.loop.optimiser = "muon"' in preset
    assert "finetune.loop.steps" not in preset
    assert file == '    settings.toml: keyframes.method = "motion", finetune.loop.steps = 20'  # 50 is the default
    assert effective().lines("keyframes")[1:] == ['    settings.toml: keyframes.method = "motion"']
    assert effective().lines("shards")[1:] == ["    shards: the defaults"]


def test_the_file_is_that_of_the_flag_before_the_variable_before_the_folder(tmp_path, monkeypatch):
    for name, seed in {"settings.toml": 1, "variable.toml": 2, "flag.toml": 3}.items():
        Path(name).write_text(f"[clips]\nseed = {seed}\n")
    assert effective().settings.clips.seed == 1
    monkeypatch.setenv("SETTINGS_FILE", "variable.toml")
    assert effective().settings.clips.seed == 2
    made = effective(Path("flag.toml"))
    assert made.settings.clips.seed == 3
    assert "file flag.toml (--settings, which goes before SETTINGS_FILE=variable.toml)" in made.lines()[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[keyframe]\nmethod = 'motion'\n", "keyframe: no setting has this name; the nearest is keyframes"),
        ("[clips]\nsed = 8\n", r"clips\.sed: no setting has this name; the nearest is clips\.seed"),
        ("[finetune]\nstep = 8\n", r"the nearest is finetune\.loop\.steps"),
        ("[finetune]\nrank = 8\n", r"the nearest is finetune\.lora\.rank"),
        ("[simulation]\nqqqqqqqq = 8\n", r"no setting has this name\. The names"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest_known_one(tmp_path, text, message):
    Path("settings.toml").write_text(text)
    with pytest.raises(SetupError, match=message):
        effective()


def test_a_wrong_value_is_told_with_the_file_that_has_it(tmp_path):
    Path("settings.toml").write_text("[clips]\nseed = 8\n")
    Path("other.toml").write_text("[evaluation]\nbatch_size = 'many'\n")
    with pytest.raises(SetupError, match=r"other\.toml, evaluation\.batch_size"):
        effective(Path("other.toml"))


def test_a_command_says_its_settings_before_anything_else(tmp_path):
    said: list[str] = []
    assert in_effect("clips", say=said.append).clips == load_settings().clips
    assert said[0].startswith("settings: preset tiny")


# --- answers by hand ---


@pytest.fixture
def stages(tmp_path: Path) -> Path:
    """Folders of a base, an adapter that was trained in bf16, and an evaluation with settings of its own."""
    base(tmp_path / "base", NAMED.name)
    (tmp_path / "adapter").mkdir()
    FinetuneSettings(quantization="none", loop={"steps": 1}).save(tmp_path / "adapter" / "settings.json")
    (tmp_path / "evaluation").mkdir()
    EvaluationSettings(views=3, hypotheses=5).save(tmp_path / "evaluation" / "settings.json")
    return tmp_path


def test_answers_are_asked_for_as_in_the_evaluation_whatever_the_environment_says(stages: Path, monkeypatch):
    said: list[str] = []
    Path("settings.toml").write_text("[evaluation]\nviews = 7\n")
    monkeypatch.setenv("PRESET", "h100")
    calibration = stages / "evaluation" / "calibration.json"
    made = answer_settings(stages / "base", stages / "adapter", calibration, say=said.append)
    assert made.evaluation == EvaluationSettings(views=3, hypotheses=5)
    assert said[0] == f"settings: the evaluation's ({stages / 'evaluation' / 'settings.json'})"
    assert "evaluation.hypotheses = 5, evaluation.views = 3" in said[1]


def test_a_file_that_is_named_changes_single_values_of_the_evaluation(stages: Path):
    Path("cpu.toml").write_text('[evaluation]\ndevice = "cpu"\n')
    calibration = stages / "evaluation" / "calibration.json"
    made = answer_settings(stages / "base", stages / "adapter", calibration, Path("cpu.toml"), say=str)
    assert made.evaluation == EvaluationSettings(views=3, hypotheses=5, device="cpu")


def test_a_file_that_would_change_nothing_in_an_answer_is_refused(stages: Path):
    Path("other.toml").write_text('[evaluation]\nviews = 1\n[keyframes]\nmethod = "motion"\n')
    calibration = stages / "evaluation" / "calibration.json"
    with pytest.raises(SetupError, match=r"other\.toml, keyframes: this changes nothing"):
        answer_settings(stages / "base", stages / "adapter", calibration, Path("other.toml"), say=str)


def test_without_a_calibration_the_records_of_base_and_adapter_decide(stages: Path, monkeypatch):
    said: list[str] = []
    monkeypatch.setenv("VLM", "tiny")
    made = answer_settings(stages / "base", stages / "adapter", None, say=said.append)
    expected = load_settings(preset="t4").evaluation.model_copy(update={"quantization": "none"})
    assert made.evaluation == expected
    assert "the preset t4 of this base" in said[0]
    assert "the adapter's bits" in said[0]


def test_an_evaluation_without_its_settings_is_an_error(stages: Path):
    (stages / "evaluation" / "settings.json").unlink()
    with pytest.raises(DataError, match=r"settings\.json"):
        answer_settings(stages / "base", stages / "adapter", stages / "evaluation" / "calibration.json", say=str)


# --- the machine ---


def test_cores_are_those_of_affinity_and_container(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(8)))
    assert machine.usable_cores(tmp_path) == 8
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.usable_cores(tmp_path) == 8
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert machine.usable_cores(tmp_path) == 3
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert machine.usable_cores(tmp_path) == 1


def test_memory_is_what_the_container_leaves(tmp_path):
    free = machine.free_memory(tmp_path)
    for name, value in {"memory.max": 10**9, "memory.current": 8 * 10**8}.items():
        (tmp_path / name).write_text(f"{value}\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 100000000\n")
    assert machine.free_memory(tmp_path) == min(free, 3 * 10**8)


@pytest.mark.parametrize(
    ("flags", "asked", "said"),
    [
        ("fpu avx2", "", "AVX2"),
        ("fpu avx2 avx512f avx512_bf16", "", "AVX-512 bf16"),
        ("fpu avx2 avx512f", "avx2", "AVX-512, held at avx2 by ATEN_CPU_CAPABILITY"),
        ("fpu", "", "no AVX2"),
    ],
)
def test_the_instruction_set_is_what_torch_may_use(tmp_path, monkeypatch, flags, asked, said):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", asked)
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\n")
    assert machine.instructions(tmp_path / "cpuinfo") == said


def test_gpus_are_those_that_the_driver_shows_and_no_variable_hides(tmp_path, monkeypatch):
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho '0, GPU-aa, Tesla T4, 15360'\necho '1, GPU-bb, NVIDIA H200, 143771'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    for visible, names in {
        None: ["Tesla T4", "NVIDIA H200"],
        "1": ["NVIDIA H200"],
        "GPU-aa": ["Tesla T4"],
        "": [],
    }.items():
        machine.gpus.cache_clear()
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible) if visible is not None else None
        assert [gpu.name for gpu in machine.gpus()] == names
    machine.gpus.cache_clear()


def test_settings_of_a_layer_are_shown_as_a_toml_file_has_them(tmp_path):
    Path("settings.toml").write_text("[normalise]\nrgb_masks = [[0, 0, 8, 8]]\n")
    line = effective().lines("normalise")[1]
    assert json.loads(line.partition(" = ")[2]) == [[0, 0, 8, 8]]
