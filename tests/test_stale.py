"""Only what is stale runs: the real graph and the real commands' code, with stages that take no time."""

import shutil
from pathlib import Path

import dagster as dg
import pytest
from fake_stages import World, install

from assets.build import Project, build
from assets.plan import Plan
from assets.refresh import explain, refresh
from assets.stale import current_plan, describe
from pipelines.common.errors import SetupError
from pipelines.common.locks import only_one
from pipelines.openpack.settings import AllSettings, ClipSettings, NormaliseSettings
from resources.paths import Paths

AFTER = ["shards", "adapter", "evaluation", "bento"]


class House:
    """A project in a folder of its own, rebuilt for every command as a new process would."""

    def __init__(self, folder: Path, world: World, overrides: dict, instance: dg.DagsterInstance) -> None:
        self.world, self.instance, self.data = world, instance, folder / "data"
        paths = Paths(data_dir=str(self.data), results_file=str(folder / "results.json"))
        self.overrides = {**overrides, "paths": paths}
        self.settings = AllSettings()
        self.said: list[str] = []

    def project(self) -> Project:
        return build(self.settings, self.overrides)

    def refresh(self) -> list[str]:
        """What the stages computed."""
        self.world.computed.clear()
        self.left = refresh(self.project(), self.instance, self.said.append)
        return list(self.world.computed)

    def stale(self) -> list[str]:
        return [str(target) for target in self.plan().stale]

    def plan(self) -> Plan:
        return current_plan(self.project(), self.instance)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    world = World({"U0101": {"S0100": "a", "S0200": "b"}, "U0102": {"S0100": "c"}})
    overrides = install(world, monkeypatch)
    with dg.DagsterInstance.ephemeral(str(tmp_path)) as instance:  # in memory: a file a run costs a second here
        yield House(tmp_path, world, overrides, instance)


def stages(computed: list[str]) -> list[str]:
    """The stages of what was computed, each once."""
    return list(dict.fromkeys(line.split()[0] for line in computed))


def test_everything_is_stale_before_the_first_run_and_nothing_after_it(house: House) -> None:
    assert describe(house.plan())[-1] == "stale: 11 of 11"
    assert stages(house.refresh()) == ["base_model", "raw_session", "normalized_video", "clips", *AFTER]
    assert describe(house.plan()) == ["stale: 0 of 11"]
    assert house.refresh() == []
    assert (house.data.parent / "results.json").is_file()


def test_a_user_is_one_run_and_looking_leaves_no_events(house: House) -> None:
    house.refresh()
    runs = house.instance.get_runs_count()
    assert runs == 1 + 2 + 5  # observing, the users, each later asset
    house.stale()
    assert house.instance.get_runs_count() == runs


def test_a_setting_runs_what_follows_and_only_that(house: House) -> None:
    house.refresh()
    house.settings = AllSettings(clips=ClipSettings(seed=8))
    assert house.stale() == ["clips[U0101]", "clips[U0102]"]
    assert stages(house.refresh()) == ["clips", *AFTER]
    assert house.refresh() == []


def test_the_wave_stops_where_content_stays_the_same(house: House) -> None:
    house.refresh()
    house.settings = AllSettings(normalise=NormaliseSettings(crf=21))
    lines = describe(house.plan())
    assert lines[:2] == ["normalized_video U0101 U0102", "    settings or code changed"]
    assert lines[-2] == "after these, only if their content changes: clips, shards, adapter, evaluation, bento"
    assert lines[-1] == "stale: 2 of 11"
    assert stages(house.refresh()) == ["normalized_video"]
    assert house.stale() == []


def test_one_more_session_costs_its_own_work(house: House) -> None:
    house.refresh()
    house.world.sessions["U0102"]["S0200"] = "d"
    assert describe(house.plan())[:2] == ["raw_session U0102", "    release has new content"]
    per_user = [f"{stage} U0102 S0200" for stage in ("raw_session", "normalized_video", "clips")]
    assert house.refresh() == [*per_user, *AFTER]


def test_one_more_user_costs_its_own_work_and_one_less_is_noticed(house: House) -> None:
    house.refresh()
    house.world.sessions["U0103"] = {"S0100": "e"}
    assert house.stale() == ["raw_session[U0103]", "normalized_video[U0103]", "clips[U0103]", "shards"]
    assert house.refresh()[:3] == [f"{stage} U0103 S0100" for stage in ("raw_session", "normalized_video", "clips")]
    del house.world.sessions["U0103"]
    assert house.stale() == ["shards"]
    house.refresh()
    assert "U0103 are no users of this source" in "\n".join(house.said)
    shutil.rmtree(house.data / "clips" / "U0103")
    assert house.refresh() == AFTER


def test_deleted_output_is_made_again_and_nothing_else(house: House) -> None:
    house.refresh()
    for place in ("clips/U0101", "clips/U0101/S0100", "clips/U0101/S0100/text"):
        gone = house.data / place
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        asset, cause = describe(house.plan())[:2]
        assert asset == "clips U0101"
        assert cause.endswith("is gone")
        assert stages(house.refresh()) == ["clips"]
        assert gone.exists()
    assert house.stale() == []


def test_another_data_dir_is_not_taken_for_this_one(house: House) -> None:
    house.refresh()
    house.data.rename(house.data.with_name("elsewhere"))
    assert len(house.stale()) == 10  # all but bento, whose files are in BentoML's store


def test_one_user_fails_and_the_others_go_on(house: House) -> None:
    house.world.broken.add("U0101")
    assert stages(house.refresh()) == ["base_model", "raw_session", "normalized_video", "clips"]
    assert any("RuntimeError: no luck with U0101" in line for line in house.said)
    assert explain(house.left) == [
        "normalized_video[U0101]: never made",
        "clips[U0101]: waits for normalized_video[U0101]",
        "shards: waits for clips[U0101]",
        "adapter: waits for shards",
        "evaluation: waits for adapter",
        "bento: waits for adapter",
    ]
    house.world.broken.clear()
    assert house.refresh() == [
        *(f"{stage} U0101 {session}" for stage in ("normalized_video", "clips") for session in ("S0100", "S0200")),
        *AFTER,
    ]


def test_a_failed_check_holds_back_what_follows_in_later_runs_too(house: House) -> None:
    house.world.scores = (0.5, 0.4)
    assert "bento" not in house.refresh()
    assert house.stale() == ["evaluation", "bento"]
    assert house.refresh() == ["evaluation"]
    assert explain(house.left)[0] == "evaluation: its check tuned_beats_base failed"
    assert any("AA@1 is 0.400 tuned and 0.500 base" in line for line in house.said)
    house.world.scores = (0.4, 0.5)
    assert house.refresh() == ["evaluation", "bento"]


def test_a_failed_check_of_one_user_is_not_hidden_by_another(house: House) -> None:
    house.world.faulty.add("U0101")
    house.refresh()
    assert house.stale() == ["normalized_video[U0101]", "clips[U0101]", *AFTER]
    house.world.faulty.clear()
    assert stages(house.refresh()) == ["clips", *AFTER]  # no video is computed again, only checked


def test_two_refreshes_do_not_meet(house: House) -> None:
    with only_one(house.data / ".refresh.lock", waiting=None), pytest.raises(SetupError, match="is at work"):
        house.refresh()
