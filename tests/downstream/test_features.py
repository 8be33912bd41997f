"""Features: what they hold, and when the cache answers and when not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from mgmae_cli.config import Layer
from mgmae_cli.downstream.encoder import build_frozen, load_encoder
from mgmae_cli.downstream.extract import extract, resolve_extract
from mgmae_cli.downstream.feature_cache import cached_features
from mgmae_cli.downstream.features import EncoderExtractor, Form, PixelExtractor, make_extractor, write_features
from mgmae_cli.downstream.views import ViewDataset, ViewSpec, read_views
from mgmae_cli.engine.distributed import Place
from mgmae_cli.errors import CheckpointError, ConfigError, DataError, RunError
from mgmae_cli.interfaces import DataLocation
from mgmae_cli.registry import Registry
from mgmae_cli.video.sources import ListSource
from tests.downstream.conftest import GRID, NoiseSource, read_rows, write_checkpoint, write_frames, write_list

CPU = Place(torch.device("cpu"), "fp32")
SPEC = ViewSpec(4, 1, 16, 16)


def noise(videos: int = 3) -> ViewDataset:
    return ViewDataset(NoiseSource(NoiseSource.Options(videos=videos), DataLocation()), SPEC)


class Counting:
    """An extractor that counts the clips it was given, and remembers the layers."""

    def __init__(self, inner: EncoderExtractor) -> None:
        self.inner, self.heads, self.notes = inner, inner.heads, inner.notes
        self.clips = 0
        self.asked: list[list[str]] = []

    @property
    def identity(self) -> Any:
        return self.inner.identity

    def __call__(self, clips: Tensor, form: Form, layers: Sequence[str]) -> Tensor:
        self.clips += len(clips)
        self.asked.append(list(layers))
        return self.inner(clips, form, layers)


def counting(checkpoint: Path, layers: Sequence[str] = ("2", "last"), seed: int | None = None) -> Counting:
    return Counting(EncoderExtractor(load_encoder(checkpoint), GRID, layers, CPU, seed))


def test_features_are_the_encoders_at_each_layer(pretrained: Path, tmp_path: Path) -> None:
    dataset, extractor = noise(), counting(pretrained, ("0", "3", "last"))
    files = {layer: tmp_path / f"{layer}.npy" for layer in ("last", "0", "3")}
    assert write_features(dataset, extractor, "dense", files, "float32", CPU, 2, 0) == {}
    encoder, _ = build_frozen(load_encoder(pretrained), GRID)
    clips = torch.cat([read_views(dataset.source, index, SPEC) for index in range(3)])
    with torch.no_grad():
        expected = {"last": encoder.features(clips), "0": encoder.features(clips, 0), "3": encoder.features(clips, 3)}
    for layer, path in files.items():
        assert np.allclose(np.load(path), expected[layer].numpy(), atol=1e-5), layer
    pooled = {"last": tmp_path / "pooled.npy"}
    write_features(dataset, extractor, "pooled", pooled, "float32", CPU, 5, 0)
    assert np.allclose(np.load(pooled["last"]), expected["last"].mean(1).numpy(), atol=1e-5)


def test_pixels_are_each_tokens_or_the_mean_colours_of_all() -> None:
    extractor = PixelExtractor(GRID)
    clips = torch.randint(256, (2, 3, 4, 16, 16), dtype=torch.uint8)
    dense, pooled = (extractor(clips, form, ("pixels",))[:, 0] for form in ("dense", "pooled"))
    assert dense.shape == (2, GRID.tokens, GRID.token_values)
    assert pooled.shape == (2, GRID.tokens * 3)
    red = clips[0, 0, 2:4, 8:16, 0:8].float().mean() / 255  # slot 1, row 1, column 0: token 1 * 4 + 2
    assert pooled.view(2, GRID.tokens, 3)[0, 6, 0] == pytest.approx((red.item() - 0.485) / 0.229, abs=1e-4)
    assert dense[0, 6].view(2, 8, 8, 3)[..., 0].mean().item() == pytest.approx(pooled[0, 18].item(), abs=1e-4)
    assert GRID.token_values % extractor.heads == 0


def test_the_random_baseline_has_the_geometry_and_other_weights(pretrained: Path) -> None:
    loaded = load_encoder(pretrained)
    one, same, other = (build_frozen(loaded, GRID, seed)[0].state_dict() for seed in (1, 1, 2))
    key = "blocks.2.mlp.fc1.weight"
    assert torch.equal(one[key], same[key])
    assert not torch.equal(one[key], other[key])
    assert not torch.equal(one[key], loaded.weights.state[key])


def test_the_cache_answers_the_second_time_and_only_for_the_same(pretrained: Path, tmp_path: Path) -> None:
    cache, dataset = tmp_path / "cache", noise()

    def ask(extractor: Counting, layers: Sequence[str] = ("2", "last"), form: Form = "pooled", **changes: Any) -> int:
        before = extractor.clips
        view = ViewDataset(changes.get("source", dataset.source), changes.get("spec", SPEC))
        tables = cached_features(view, extractor, layers, form, cache, CPU, 4, 0)
        assert all(np.isfinite(table.values).all() for table in tables.values())
        return extractor.clips - before

    extractor = counting(pretrained)
    assert ask(extractor) == 3
    assert ask(extractor) == 0
    copy = tmp_path / "copy.pt"
    shutil.copy(pretrained / "checkpoints" / "step-000003.pt", copy)
    assert ask(counting(copy)) == 0  # another file, the same content
    assert ask(counting(write_checkpoint(tmp_path / "other", seed=1))) == 3
    assert ask(counting(pretrained, seed=0)) == 3  # the random baseline
    assert ask(extractor, form="dense") == 3
    assert ask(extractor, spec=ViewSpec(4, 2, 16, 16)) == 3
    assert ask(extractor, source=noise(2).source) == 2
    layered = counting(pretrained, ("2", "4", "last"))
    assert ask(layered, ("2", "4", "last")) == 3
    assert layered.asked == [["4"]]


def test_the_cache_notices_a_video_that_changes(pretrained: Path, tmp_path: Path) -> None:
    for number in range(2):
        write_frames(tmp_path / f"clip{number}", seed=number)
    path = write_list(tmp_path / "list.csv", ["clip0,a", "clip1,b"], "path,label")
    extractor = counting(pretrained)

    def ask(**options: Any) -> int:
        before = extractor.clips
        dataset = ViewDataset(ListSource(ListSource.Options(**options), DataLocation(path)), SPEC)
        cached_features(dataset, extractor, ["last"], "pooled", tmp_path / "cache", CPU, 4, 0)
        return extractor.clips - before

    assert ask() == 2
    assert ask() == 0
    assert ask(cache=tmp_path / "frames", cache_gb=1) == 0  # changes how fast clips come, not which
    shutil.rmtree(tmp_path / "clip1")
    write_frames(tmp_path / "clip1", seed=9)
    os.utime(tmp_path / "clip1", (1, 1))
    assert ask() == 2
    shutil.rmtree(tmp_path / "clip0")  # pixels of the first video, with the folder's own size and time as before
    stat = (tmp_path / "clip1").stat()
    write_frames(tmp_path / "clip0", seed=7)
    os.utime(tmp_path / "clip0", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert ask() == 2


def test_an_interrupted_extraction_leaves_nothing_in_the_cache(pretrained: Path, tmp_path: Path) -> None:
    class Failing(Counting):
        def __call__(self, clips: Tensor, form: Form, layers: Sequence[str]) -> Tensor:
            if self.clips:
                raise KeyboardInterrupt
            return super().__call__(clips, form, layers)

    failing = Failing(counting(pretrained).inner)
    with pytest.raises(KeyboardInterrupt):
        cached_features(noise(), failing, ["last"], "pooled", tmp_path / "cache", CPU, 1, 0)
    assert list((tmp_path / "cache").iterdir()) == []


def settings(checkpoint: Path, registry: Registry, out: Path, **values: Any) -> Any:
    given = {key.replace("__", "."): value for key, value in values.items()}
    fixed = {"checkpoint": str(checkpoint), "data.source": "noise", "run.out": str(out), "run.device": "cpu"}
    return resolve_extract(None, Layer("test", {**fixed, "data.workers": 0, **given}), (), registry)


@pytest.mark.parametrize(("form", "shape"), [("pooled", (8, 128)), ("dense", (8, 8, 128))])
def test_the_files_hold_the_same_in_both_formats(
    form: str, shape: tuple[int, ...], pretrained: Path, tmp_path: Path, registry: Registry
) -> None:
    from safetensors.numpy import load_file

    common = {"features__form": form, "features__layers": ["2", "last"]}
    plain = extract(settings(pretrained, registry, tmp_path / "npy", **common), Console(quiet=True))
    one = settings(pretrained, registry, tmp_path / "one", features__format="safetensors", **common)
    joined = load_file(extract(one, Console(quiet=True)) / "features.safetensors")
    assert sorted(joined) == ["2", "last"]
    for layer, values in joined.items():
        assert values.shape == shape
        assert np.array_equal(values, np.load(plain / f"features-{layer}.npy"))
    assert not list((tmp_path / "one").glob("*.npy"))
    rows = read_rows(plain / "index.csv")
    assert [row["path"] for row in rows] == [f"noise:train:{number}" for number in range(8)]
    assert rows[3]["class"] == "class 3"
    about = json.loads((plain / "features.json").read_text())
    assert about["shape"] == list(shape)
    assert about["digest"] == load_encoder(pretrained).digest()


def test_an_unreadable_video_stops_the_extraction_or_leaves_a_row_of_nan(
    pretrained: Path, tmp_path: Path, registry: Registry
) -> None:
    write_frames(tmp_path / "good")
    (tmp_path / "broken").mkdir()
    path = write_list(tmp_path / "list.csv", ["broken", "good"], "path")
    values = {"data__source": "list", "data__path": str(path)}
    with pytest.raises(DataError, match=r"list\.csv, line 2"):
        extract(settings(pretrained, registry, tmp_path / "a", **values), Console(quiet=True))
    folder = extract(
        settings(pretrained, registry, tmp_path / "b", views__on_bad="count", **values), Console(quiet=True)
    )
    features = np.load(folder / "features-last.npy")
    assert np.isnan(features[0]).all()
    assert np.isfinite(features[1]).all()
    rows = read_rows(folder / "index.csv")
    assert rows[0]["unreadable"]
    assert rows[1]["unreadable"] == ""
    only_bad = write_list(tmp_path / "bad.csv", ["broken"], "path")
    values = {"data__source": "list", "data__path": str(only_bad), "views__on_bad": "count"}
    with pytest.raises(DataError, match=r"none of its 1 videos can be read"):
        extract(settings(pretrained, registry, tmp_path / "c", **values), Console(quiet=True))


def test_bad_input_is_answered(pretrained: Path, tmp_path: Path, registry: Registry) -> None:
    loaded = load_encoder(pretrained)
    with pytest.raises(ConfigError, match=r"--layers 9: .* has layers 1 to 4, 0 .* and last"):
        make_extractor(loaded, GRID, ["9"], CPU, "none", 0)
    with pytest.raises(ConfigError, match=r"--layers 2: pixels have no layers"):
        make_extractor(loaded, GRID, ["2"], CPU, "pixels", 0)
    with pytest.raises(ConfigError, match=r"features\.layers: .*should match pattern"):
        settings(pretrained, registry, tmp_path, features__layers=["third"])
    with pytest.raises(ConfigError, match=r"dense features are of one view"):
        settings(pretrained, registry, tmp_path, features__form="dense", views__clips=2)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        settings(tmp_path / "none", registry, tmp_path)
    extract(settings(pretrained, registry, tmp_path / "taken"), Console(quiet=True))
    with pytest.raises(RunError, match="already holds results"):
        extract(settings(pretrained, registry, tmp_path / "taken"), Console(quiet=True))


def test_features_too_large_for_half_precision_are_told(pretrained: Path, tmp_path: Path) -> None:
    class Huge(Counting):
        def __call__(self, clips: Tensor, form: Form, layers: Sequence[str]) -> Tensor:
            return 1e5 + super().__call__(clips, form, layers)

    with pytest.raises(RunError, match=r"noise:train:0: its features are not finite as float16"):
        write_features(
            noise(), Huge(counting(pretrained).inner), "pooled", {"last": tmp_path / "x.npy"}, "float16", CPU, 1, 0
        )
