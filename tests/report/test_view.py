"""`realrl view`: pages that stand alone and hold what was recorded, films, recordings for Rerun, and failures that are kept."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import sys
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from realrl.cell.evaluate import HELD_OUT
from realrl.data import side
from realrl.data.store import Store
from realrl.generative.diffusion import DiffusionConfig
from realrl.policies.diffusion import DiffusionPolicy, PolicyConfig
from realrl.policies.folder import save_policy
from realrl.report import write_report
from realrl.report.failures import FirstFailures
from realrl.report.pictures import grey, jpeg
from realrl.report.view import Clip, EpisodeSet, film, media, view, write_page
from realrl.report.view.clips import names_of, recorded, worst_of
from realrl.report.view.scenes import pictured, rolled
from realrl.types import Array, Episode, RealrlError

FPS, STEPS = 20, 9


def episode(number: int = 0, **changes: Any) -> Episode:
    """A short episode of numbers; even ones succeed."""
    rng = np.random.default_rng(number)
    steps, good = int(changes.pop("steps", STEPS)), number % 2 == 0
    made: dict[str, Any] = {
        "obs": {"state": rng.normal(size=(steps + 1, 3)).astype(np.float32), **changes.pop("senses", {})},
        "action": rng.uniform(-1, 1, (steps, 2)).astype(np.float32), "proposed": rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
        "source": np.arange(steps, dtype=np.uint8) % 3, "reward": rng.normal(size=steps).astype(np.float32),
        "success": (np.arange(steps) == steps - 1) & good, "time": np.arange(steps) / FPS, "starts_plan": np.arange(steps) % 4 == 0,
        "terminated": good, "truncated": not good, "task": "put it </script><script>alert(1)</script> there", "policy": "p", "seed": number}
    return Episode(**{**made, **changes})


def senses(kind: str, steps: int = STEPS, side: int = 32) -> dict[str, Array]:
    """Synthetic observations in which everything moves."""
    rng, time = np.random.default_rng(1), np.arange(steps + 1)
    if kind == "rgb":
        x = np.zeros((steps + 1, side, side + 1, 3), np.uint8)  # an odd width, which browsers cannot play as it is
        x[..., 0], x[..., 1] = (20 * time % 256)[:, None, None], 90
        return {"images.top": x, "images.wrist": x[:, ::-1, : side // 2]}
    if kind == "depth":
        x = (500 + 20 * time[:, None, None] + np.arange(side)[None, :, None] + np.zeros((1, 1, side))).astype(np.uint16)
        x[:, :4] = 0
        return {"depth.top": x}
    if kind in ("cloud", "colour"):
        xyz = rng.uniform(-.3, .7, (steps + 1, 64, 3)) + time[:, None, None] * .01
        return {"pointcloud": np.concatenate([xyz, rng.uniform(0, 1, xyz.shape)], -1).astype(np.float32)[..., :3 if kind == "cloud" else 6]}
    return {}


@dataclass
class Read(HTMLParser):
    """What a page holds: addresses, inline data of every episode, how many of each element, and its text."""

    addresses: list[str] = field(default_factory=list)
    data: list[dict[str, Any]] = field(default_factory=list)
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._in = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self.addresses += [v for k, v in attrs if k in ("src", "href", "poster", "data", "srcset", "action") and v is not None]
        self._in = "data" if found.get("type") == "application/json" else tag

    def handle_data(self, data: str) -> None:
        if self._in == "data" and data.strip():
            self.data.append(json.loads(data))
        elif self._in not in ("script", "style"):
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def of(self, tag: str, cls: str = "") -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag and (not cls or cls in (a.get("class") or "").split())]


def page(file: Path) -> Read:
    """A page, after checking that it needs no network."""
    html = file.read_text(encoding="utf-8")
    read = Read()
    read.feed(html)
    assert all(re.match(r"data:|#", a) for a in read.addresses), [a[:60] for a in read.addresses]
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttpRequest|<link|<iframe", html)
    assert len(read.of("script")) == len(read.data) + 1  # and nothing that a recording brought along
    return read


def floats(text: str) -> Array:
    return np.frombuffer(base64.b64decode(text), "<f4")


def frames(file: Any) -> list[Array]:
    with av.open(file) as container:
        return [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]


def dataset(folder: Path, episodes: list[Episode]) -> Store:
    store = Store.create(folder, task=episodes[0].task, fps=FPS, codec="h264")
    store.append(episodes)
    return store


# -- pages ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "films", "clouds"), [("state", 0, 0), ("rgb", 2, 0), ("depth", 1, 0), ("cloud", 0, 1), ("colour", 0, 1)])
def test_a_page_holds_every_modality(tmp_path: Path, kind: str, films: int, clouds: int) -> None:
    made = [episode(i, senses=senses(kind)) for i in range(2)]
    dataset(tmp_path / "set", made)
    files = view(str(tmp_path / "set"), out=tmp_path / "out")
    assert files == [tmp_path / "out/set.html"]
    read = page(files[0])
    assert len(read.data) == 2 and len(read.of("video")) == 2 * films and len(read.of("canvas", "cloud")) == 2 * clouds
    assert len(read.of("div", "strip")) == 2 * films and len(read.of("img")) == 2 * films * media.THUMBS
    assert ("No cameras and no point clouds" in read.text) == (films + clouds == 0)
    for e, told in zip(made, read.data, strict=True):
        assert told["steps"] == STEPS and told["dt"] == 1 / FPS and told["plans"] == [0, 4, 8]
        assert np.array_equal(np.frombuffer(base64.b64decode(told["who"]), np.uint8), e.source)
        lines = {panel["title"]: {x["name"]: floats(x["data"]) for x in panel["lines"]} for panel in told["traces"]}
        assert np.array_equal(lines["Reward and success"]["reward"], e.reward)
        for d in range(2):
            assert np.array_equal(lines[f"Action {d}"]["sent"], e.action[:, d])
            assert np.array_equal(lines[f"Action {d}"]["proposed"], e.proposed[:, d])
        assert np.array_equal(lines["State"]["2"], e.obs["state"][:, 2])
    for video, told in zip(read.of("video"), [f for d in read.data for f in d["films"]], strict=True):
        shown = frames(io.BytesIO(base64.b64decode((video["src"] or "").partition(",")[2])))
        assert len(shown) == STEPS + 1 and told == {"every": 1, "fps": FPS}
        assert shown[0].shape[0] % 2 == shown[0].shape[1] % 2 == 0 and np.abs(shown[0].astype(int) - shown[-1]).max() > 20
    for e, told in zip(made, read.data, strict=True):
        for about in told["clouds"]:
            q = np.frombuffer(base64.b64decode(about["points"]), "<i2").reshape(about["frames"], about["n"], 3)
            assert np.abs(about["low"] + about["scale"] * (q + 32767.0) - e.obs["pointcloud"][..., :3]).max() < 1e-4
            assert (about["colours"] is not None) == (kind == "colour")


def test_what_others_wrote_is_only_text(tmp_path: Path) -> None:
    made = episode(1, policy="<img src=x onerror=alert(2)>", senses={"we<ird": np.zeros((STEPS + 1, 2), np.float32)})
    found = EpisodeSet("a", "<b>t</b>", "k", [3], lambda: iter([Clip(3, made, .1, curves={"</script>": np.zeros(STEPS)}, notes=["<i>"])]))
    html = write_page(found, tmp_path / "a.html", found.clips()).read_text()
    read = page(tmp_path / "a.html")
    assert "alert(1)</script>" not in html and "<img src=x" not in html and "<b>t" not in html
    assert "</script>" in [p["title"] for p in read.data[0]["traces"]] and "we<ird" in [p["title"] for p in read.data[0]["traces"]]


def test_a_note_of_every_episode_is_said_once(tmp_path: Path) -> None:
    clips = [Clip(i, episode(i), .1, notes=["of all", *(["of the second"] if i else [])]) for i in range(3)]
    found = EpisodeSet("a", "t", "k", range(3), lambda: iter(clips))
    html = write_page(found, tmp_path / "a.html", found.clips()).read_text()
    header = html.partition("</header>")[0]
    assert html.count("of all") == header.count("of all") == 1 and html.count("of the second") == 2


def test_long_films_and_clouds_are_thinned_and_wide_numbers_become_heat_maps() -> None:
    steps = 2 * media.FRAMES
    wide = np.random.default_rng(0).normal(size=(steps, 12)).astype(np.float32)
    cloud = np.zeros((steps + 1, 300, 3), np.float32)
    cloud[..., 0] = np.arange(steps + 1)[:, None]
    state = np.random.default_rng(1).normal(size=(steps + 1, 20)).astype(np.float32)
    e = episode(1, steps=steps, senses={**senses("rgb", steps, 8), "pointcloud": cloud, "state": state}, action=wide, proposed=0 * wide)
    told = json.loads(media.section(Clip(0, e, .05))["data"])
    assert [f["every"] for f in told["films"]] == [3, 3] and told["films"][0]["fps"] == pytest.approx(20 / 3)
    (about,) = told["clouds"]
    assert about["frames"] * about["n"] <= media.CLOUD and about["frames"] == -(-(steps + 1) // about["every"])
    heats = {p["title"]: p for p in told["traces"] if p["kind"] == "heat"}
    assert set(heats) == {"Actions sent, all", "Sent less proposed, all", "State, all 20"}
    rows = np.frombuffer(base64.b64decode(heats["Actions sent, all"]["data"]), np.uint8).reshape(12, steps)
    assert (rows[np.arange(12), wide.argmax(0)] == 255).all() and (rows[np.arange(12), wide.argmin(0)] == 1).all()


def test_values_that_are_not_numbers_leave_gaps(tmp_path: Path) -> None:
    x = np.linspace(0, 1, STEPS)
    x[3] = np.nan
    told = json.loads(media.section(Clip(0, episode(0), .1, curves={"value": x}))["data"])
    panel = next(p for p in told["traces"] if p["title"] == "value")
    assert np.isnan(floats(panel["lines"][0]["data"])).tolist() == np.isnan(x).tolist() and (panel["low"], panel["high"]) == (0, 1)
    heat = media._heat("h", np.array([[1.0, np.nan], [2.0, 5.0]]))
    assert base64.b64decode(heat["data"]) == bytes([1, 255, 0, 1])  # a row a number; 0 is missing; one value has no range


def test_depth_is_grey_near_light_and_nothing_black() -> None:
    shown = grey(np.array([[0, 500, 1000, 9000]], np.uint16), 500, 1000)
    assert shown.shape == (1, 4, 3) and shown[0, :, 0].tolist() == [0, 255, 40, 40]
    assert jpeg(np.zeros((6, 8), np.uint16)).startswith("data:image/jpeg;base64,")


def test_a_page_shows_derived_columns_and_names(tmp_path: Path) -> None:
    store = dataset(tmp_path / "set", [episode(0), episode(1)])
    side.write(tmp_path / "set", "critic", {"value": np.arange(store.frames, dtype=np.float64), "twice": np.zeros((store.frames, 2))})
    store.append([episode(2)])
    clips = {clip.number: clip for clip in recorded(tmp_path / "set", numbers=[1, 2]).clips()}
    assert clips[1].curves["value"].tolist() == list(range(STEPS, 2 * STEPS)) and list(clips[1].curves) == ["value"]
    assert not clips[2].curves  # appended since
    assert names_of({"shape": [2], "names": {"motors": ["a", "b"]}}) == names_of({"shape": [2], "names": ["a", "b"]}) == ["a", "b"]
    assert names_of({"shape": [2], "names": ["a"]}) == names_of({"shape": [2], "names": None}) == []
    (tmp_path / "set/derived/critic/v1.parquet").write_bytes(b"no parquet")
    (clip,) = recorded(tmp_path / "set", numbers=[0]).clips()
    assert not clip.curves and "v1.parquet" in clip.notes[0]


def test_which_episodes(tmp_path: Path) -> None:
    made = [replace(episode(i), reward=np.full(STEPS, r, np.float32)) for i, r in enumerate((5, 1, 2, 3, 0, -1))]
    store = dataset(tmp_path / "set", made)
    assert worst_of(store, 4) == [5, 1, 3, 4]  # failures (odd) by return, then successes by return
    assert recorded(tmp_path / "set", worst=2).numbers == [5, 1] and recorded(tmp_path / "set").numbers == [0, 2, 3, 5]
    assert len(page(view(str(tmp_path / "set"), worst=2)[0]).data) == 2 and (tmp_path / "set-view/set.html").is_file()


# -- films and recordings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["state", "rgb", "depth", "cloud", "colour"])
def test_a_film_has_a_picture_an_observation(tmp_path: Path, kind: str) -> None:
    clip = Clip(4, episode(1, senses=senses(kind)), 1 / FPS)
    shown = frames(str(film.write(clip, tmp_path / "a.mp4")))
    assert len(shown) == STEPS + 1 and len({x.shape for x in shown}) == 1
    assert shown[0].shape[0] == film.HEAD + film.BARS + (film.SIDE if kind != "state" else 0)
    assert all(np.abs(a.astype(int) - b).max() > 30 for a, b in itertools.pairwise(shown))  # the bars move if nothing else


def test_a_film_tells_what_is_known_of_every_step(tmp_path: Path) -> None:
    flags = np.arange(2 * STEPS).reshape(STEPS, 2) % 3 == 0
    clip = Clip(4, episode(1), 1 / FPS, {"speed": np.linspace(0, 1, STEPS), "feet": flags, "chain": np.zeros((STEPS, 2))})
    shown = frames(str(film.write(clip, tmp_path / "a.mp4")))
    assert len(shown) == STEPS + 1 and shown[0].shape[0] == 2 * film.HEAD + film.BARS
    told = [x[film.HEAD:2 * film.HEAD].astype(int) for x in shown]
    assert all(np.abs(a - b).max() > 100 for a, b in itertools.pairwise(told[:-1])) and np.abs(told[-1] - told[-2]).max() < 100
    feet = next(panel for panel in media.traces(clip) if panel["title"] == "feet")
    assert feet["kind"] == "heat" and set(base64.b64decode(feet["data"])) == {1, 255}
    always = next(p for p in media.traces(replace(clip, curves={"feet": np.ones((STEPS, 2), bool)})) if p["title"] == "feet")
    assert set(base64.b64decode(always["data"])) == {255}  # over the range of flags, not their own


def test_the_nearer_point_hides_the_farther() -> None:
    cloud = np.array([[0.0, -.5, 0], [0, .5, 0]])
    red, blue = np.array([[255.0, 0, 0]]), np.array([[0, 0, 255.0]])
    for order in ([0, 1], [1, 0]):
        out = film.splat(cloud[order], np.concatenate([red, blue])[order], turn=0.0, size=64, tilt=0.0)
        assert out[32, 32, 0] > out[32, 32, 2]


def test_a_recording_for_rerun(tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    dataset(tmp_path / "set", [episode(0, senses={**senses("rgb"), **senses("depth"), **senses("colour")})])
    files = view(str(tmp_path / "set"), out=tmp_path / "out", rerun=True, mp4=True)
    assert [f.name for f in files] == ["set.html", "set-0.mp4", "set-0.rrd"]
    assert files[2].read_bytes()[:3] == b"RRF" and files[2].stat().st_size > 5_000


def test_without_rerun_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)  # what Python keeps for a package that cannot be imported
    dataset(tmp_path / "set", [episode(0)])
    with pytest.raises(RealrlError, match="pip install 'realrl"):
        view(str(tmp_path / "set"), out=tmp_path / "out", rerun=True)
    assert not (tmp_path / "out").exists()


# -- tasks ------------------------------------------------------------------------------------------------------------------------


def test_a_task_is_looked_at_in_every_way(tmp_path: Path) -> None:
    (file,) = view("toy/reach", episodes=[0, 2], seed=5, sights=("rgb", "depth", "pointcloud"), out=tmp_path)
    read = page(file)
    assert len(read.of("video")) == 4 and len(read.of("canvas", "cloud")) == 2
    assert "seed 5" in read.text and "seed 7" in read.text and "2 succeeded, 0 failed" in read.text and "drifts" not in read.text


def test_a_task_without_eyes_shows_its_traces_and_says_so(tmp_path: Path) -> None:
    told: list[str] = []
    read = page(view("toy/obstacle", out=tmp_path, tell=told.append)[0])
    assert len(told) == 1 and "No rgb of these episodes: toy/obstacle" in told[0]
    assert "No rgb of these episodes: toy/obstacle" in read.text and not read.of("video") and len(read.data) == 1


def test_a_policy_acts_and_its_actions_are_played_again(tmp_path: Path) -> None:
    cfg = PolicyConfig(chunk=4, hidden=16, blocks=1, diffusion=DiffusionConfig(steps=3))
    save_policy(DiffusionPolicy(cfg, 4, 2), tmp_path / "policy", task="toy/reach")
    (clip,) = rolled("toy/reach", policy=tmp_path / "policy", seeds=[3]).clips()
    e = clip.episode
    assert e.obs["images.top"].shape[0] == len(e) + 1 and e.obs["state"].shape[1] == 4 and not clip.notes
    moved, _, notes = pictured([replace(e, obs={"state": e.obs["state"] + .5})], "toy/reach")
    assert "drifts up to 0.5" in notes[0] and "images.top" in moved[0].obs
    assert "names no seed" in pictured([replace(e, seed=None, obs={"state": e.obs["state"]})], "toy/reach")[2][0]
    assert pictured([e], "toy/reach")[0][0] is e  # it has pictures of its own
    save_policy(DiffusionPolicy(cfg, 3, 2), tmp_path / "other", task="toy/reach")
    with pytest.raises(RealrlError, match="give the task it was trained on"):
        rolled("toy/reach", policy=tmp_path / "other")


@pytest.mark.parametrize(("what", "options", "message"), [
    ("toy/reahc", {}, "did you mean 'toy/reach'"), ("toy/reach", {"sights": ["x-ray"]}, "no sight 'x-ray'"),
    ("toy/reach", {"worst": 3}, "--worst is for recorded"), ("set", {"episodes": [1], "worst": 1}, "not both"),
    ("set", {"episodes": [7]}, "there is no number 7"), ("set", {"policy": Path("p")}, "--policy is for a task"),
    ("set", {"sights": ["depth"]}, "--sight is for a task"),
    (".", {}, "neither a LeRobot dataset nor the folder of a run"), ("empty", {}, "holds no episodes")])
def test_mistakes_get_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, options: dict[str, Any], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    dataset(tmp_path / "set", [episode(0)])
    Store.create(tmp_path / "empty", task="t", fps=FPS)
    with pytest.raises(RealrlError, match=message) as error:
        view(what, **options)
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "set"]


# -- failures ---------------------------------------------------------------------------------------------------------------------


def failed(seed: int, **changes: Any) -> Episode:
    return replace(episode(1), seed=seed, success=np.zeros(STEPS, bool), terminated=False, truncated=True, **changes)


def test_the_first_failures_by_seed_are_kept() -> None:
    kept = FirstFailures(2)
    passed = [kept.pick(e) for e in (failed(HELD_OUT + 5), episode(0), failed(HELD_OUT + 1), failed(HELD_OUT + 3))]
    assert [e.seed for e in kept.episodes] == [HELD_OUT + 1, HELD_OUT + 3] and (kept.tried, kept.failed) == (4, 3)
    assert all(not e.obs and len(e) == STEPS for e in passed) and all(e.obs for e in kept.episodes)


@pytest.mark.parametrize("pictures", [True, False])
def test_failures_become_a_dataset_a_page_and_a_section_of_the_report(tmp_path: Path, pictures: bool) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"stage": "imitation", "step": 0, "loss": 1.0}\n')
    assert "What the failures look like" not in write_report(run).read_text()
    kept = FirstFailures(2)
    for seed in (9, 4, 7):
        kept.pick(failed(seed, obs={"state": np.ones((STEPS + 1, 3), np.float32), **senses("rgb" if pictures else "")}))
    out = run / "failures-ddim"
    file = kept.save(out, task="toy/line", dt=1 / FPS)
    assert file == out / "failures.html"
    store = Store.open(out / "failures")
    assert [e.seed for e in store.read()] == [4, 7] and bool(store.cameras) == pictures
    read = page(file)
    assert "the first 2 of 3 failures in 3" in read.text and len(read.of("video")) == (4 if pictures else 0)
    html = write_report(run).read_text()
    assert "What the failures look like" in html and 'href="failures-ddim/failures.html"' in html
    assert "Seed 4" in html and "Seed 7" in html and "Seed 9" not in html
    assert len(re.findall("data:image/jpeg", html)) == (2 * 2 * 5 if pictures else 0)
    with pytest.raises(RealrlError, match="earlier evaluation"):
        kept.save(out, task="toy/line", dt=1 / FPS)
    assert [f.name for f in view(str(run))] == ["failures-ddim.html"]
    Store.create(run / "dataset", task="toy/line", fps=FPS)
    assert [f.name for f in view(str(run))] == ["failures-ddim.html"], "an empty data set hides nothing"
    (out / "failures/meta/info.json").write_text("{}")
    assert "cannot be shown" in write_report(run).read_text()


def test_no_failure_writes_nothing(tmp_path: Path) -> None:
    kept = FirstFailures(3)
    kept.pick(episode(0))
    assert kept.save(tmp_path / "out", task="toy/line", dt=.1) is None and not (tmp_path / "out").exists()
