"""Fine-tuning from end to end on clips of a few pixels: it learns, it resumes, and bad input is answered."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from mgmae_cli.config import Layer, recipe_layer
from mgmae_cli.downstream.encoder import load_classifier, load_encoder, new_classifier
from mgmae_cli.downstream.finetune import FinetuneResult, FinetuneTask, finetune
from mgmae_cli.downstream.finetune_settings import FinetuneSettings, resolve_finetune, resumed_finetune
from mgmae_cli.engine.checkpoint import read_checkpoint
from mgmae_cli.engine.run_folder import read_metrics
from mgmae_cli.errors import CheckpointError, ConfigError, DataError, RunError
from mgmae_cli.registry import Registry
from mgmae_cli.video.loader import Batch
from tests.downstream.conftest import GRID, write_checkpoint, write_frames, write_list

PLAIN: dict[str, Any] = {
    "augment.randaugment": None,
    "augment.erase": 0.0,
    "augment.mixup": 0.0,
    "augment.cutmix": 0.0,
    "augment.label_smoothing": 0.0,
    "model.drop_path": 0.0,
    "train.layer_decay": 1.0,
}
SMALL: dict[str, Any] = {
    "data.source": "noise",
    "data.workers": 0,
    "train.steps": 2,
    "train.batch_size": 4,
    "run.device": "cpu",
    "run.log_every": 1,
    "run.pictures": False,
}


def settings(checkpoint: Path, out: Path, registry: Registry, **values: Any) -> FinetuneSettings:
    """Return small settings; keyword a__b means key a.b."""
    given = {key.replace("__", "."): value for key, value in values.items()}
    layer = Layer("test", {**SMALL, "checkpoint": str(checkpoint), "run.out": str(out), **given})
    return resolve_finetune(None, layer, (), registry)


def run(chosen: FinetuneSettings, resume: Path | None = None) -> FinetuneResult:
    result = finetune(chosen, resume, Console(quiet=True))
    assert result is not None
    return result


def with_plain(**values: Any) -> dict[str, Any]:
    return {**{key.replace(".", "__"): value for key, value in PLAIN.items()}, **values}


def test_it_learns_eight_clips_by_heart(pretrained: Path, tmp_path: Path, registry: Registry) -> None:
    chosen = settings(
        pretrained,
        tmp_path / "run",
        registry,
        **with_plain(data__crop="none", train__steps=40, train__batch_size=8, train__base_lr=0.02),
        train__validate_every=10,
        run__pictures=True,
    )
    result = run(chosen)
    assert result.last["top1"] == 100  # `val` of this source holds the clips of `train`
    losses = [record["loss"] for record in read_metrics(tmp_path / "run") if "loss" in record]
    assert losses[0] == pytest.approx(torch.tensor(8.0).log().item(), abs=0.05)  # the head starts near nothing
    assert losses[-1] < losses[0] / 2
    assert [record["step"] for record in read_metrics(tmp_path / "run") if "top1" in record] == [10, 20, 30, 40]
    best = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.pt")
    assert best["step"] == result.best["step"]
    assert "optimizer" not in best
    assert (tmp_path / "run" / "checkpoints" / "step-000040.pt").exists()
    assert (tmp_path / "run" / "curves.png").stat().st_size > 1000
    assert load_classifier(tmp_path / "run").classes == [f"class {number}" for number in range(8)]


def test_a_resumed_run_ends_where_the_other_does(pretrained: Path, tmp_path: Path, registry: Registry) -> None:
    """With all that draws random numbers: crops, RandAugment, erasing, mixing, drop path, dropout, averaging."""
    odd = {"data__crop": "random_resized", "data__samples_per_video": 2, "model__drop_path": 0.3}
    odd |= {"model__head_dropout": 0.2, "train__ema": 0.9, "run__save_every": 2, "run__keep_last": 5}
    whole = settings(pretrained, tmp_path / "whole", registry, train__steps=4, train__base_lr=0.01, **odd)
    run(whole)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    (tmp_path / "part" / "checkpoints" / "step-000004.pt").unlink()
    (tmp_path / "part" / "checkpoints" / "best.pt").unlink()
    run(resumed_finetune(tmp_path / "part", registry=registry), tmp_path / "part")
    ends = [read_checkpoint(tmp_path / name / "checkpoints" / "step-000004.pt") for name in ("whole", "part")]
    for part in ("model", "ema"):
        for key, value in ends[0][part].items():
            assert torch.equal(value, ends[1][part][key]), key
    assert ends[0]["best"] == ends[1]["best"]
    assert not all(torch.equal(value, ends[0]["ema"][key]) for key, value in ends[0]["model"].items())
    assert [r["loss"] for r in read_metrics(tmp_path / "whole") if "loss" in r] == [
        r["loss"] for r in read_metrics(tmp_path / "part") if "loss" in r
    ]


def test_a_run_that_has_saved_nothing_yet_starts_over(pretrained: Path, tmp_path: Path, registry: Registry) -> None:
    run(settings(pretrained, tmp_path / "run", registry))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    result = run(resumed_finetune(tmp_path / "run", registry=registry), tmp_path / "run")
    assert result.last["step"] == 2


def test_its_config_is_a_recipe_that_says_the_same(pretrained: Path, tmp_path: Path, registry: Registry) -> None:
    first = settings(pretrained, tmp_path / "run", registry)
    run(first)
    again = resolve_finetune(tmp_path / "run" / "config.yaml", Layer("test", {"run.out": "x"}), (), registry)
    saved = first.config.model_copy(update={"run": again.config.run})
    assert again.config == saved
    assert recipe_layer(tmp_path / "run" / "config.yaml").values["model.name"] == "tiny"


def test_it_starts_from_the_checkpoints_encoder_and_the_baseline_does_not(
    pretrained: Path, tmp_path: Path, registry: Registry
) -> None:
    from mgmae_cli.downstream.finetune import finetune_job
    from mgmae_cli.engine.distributed import Place

    place = Place(torch.device("cpu"), "fp32")
    known = load_encoder(pretrained).weights.state
    job = finetune_job(settings(pretrained, tmp_path / "a", registry), place)
    other = finetune_job(settings(pretrained, tmp_path / "b", registry, baseline="random"), place)
    for key, value in job.model.state_dict().items():
        if key.startswith(("patch_embed", "blocks")):
            assert torch.equal(value, known[key]), key
    key = "blocks.3.attn.qkv.weight"
    assert not torch.equal(other.model.state_dict()[key], known[key])
    assert torch.equal(other.model.head.weight, job.model.head.weight)  # seeds are the same


def test_a_checkpoint_with_keys_missing_is_taken_only_when_asked(
    pretrained: Path, tmp_path: Path, registry: Registry
) -> None:
    from mgmae_cli.downstream.finetune import finetune_job
    from mgmae_cli.engine.distributed import Place

    payload = read_checkpoint(load_encoder(pretrained).path)
    del payload["model"]["encoder.blocks.2.attn.proj.bias"]
    torch.save(payload, tmp_path / "part.pt")
    place = Place(torch.device("cpu"), "fp32")
    with pytest.raises(CheckpointError, match=r"part.pt: .*--allow-partial\nmissing: blocks.2.attn.proj.bias$"):
        finetune_job(settings(tmp_path / "part.pt", tmp_path / "a", registry), place)
    job = finetune_job(settings(tmp_path / "part.pt", tmp_path / "b", registry, model__allow_partial=True), place)
    assert "missing: blocks.2.attn.proj.bias" in job.notes
    with pytest.raises(ConfigError, match=r"model.allow_partial: the baseline random takes no weights"):
        settings(pretrained, tmp_path / "c", registry, baseline="random", model__allow_partial=True)


def test_a_classifiers_head_starts_anew(pretrained: Path, tmp_path: Path, registry: Registry) -> None:
    run(settings(pretrained, tmp_path / "first", registry, train__base_lr=1.0))
    second = settings(tmp_path / "first", tmp_path / "second", registry, **{"data__options__classes": 4})
    from mgmae_cli.downstream.finetune import finetune_job
    from mgmae_cli.engine.distributed import Place

    job = finetune_job(second, Place(torch.device("cpu"), "fp32"))
    assert job.model.head.weight.shape == (4, 128)
    assert job.model.head.weight.abs().max() < 1e-4
    assert torch.equal(
        job.model.blocks[3].mlp.fc2.bias, load_encoder(tmp_path / "first").weights.state["blocks.3.mlp.fc2.bias"]
    )


def test_clips_of_another_size_and_length_are_fitted(pretrained: Path, tmp_path: Path, registry: Registry) -> None:
    result = run(settings(pretrained, tmp_path / "run", registry, data__size=24, data__frames=6))
    classifier = load_classifier(tmp_path / "run")
    assert classifier.weights.geometry.grid.tokens == 3 * 3 * 3
    assert result.settings.grid.tokens == 27
    assert classifier.reading["data.size"] == 24


def test_the_loss_is_the_cross_entropy_of_the_labels() -> None:
    model = new_classifier(load_geometry(), GRID, 4, head_scale=1.0)
    clips = torch.randint(256, (3, 3, 4, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = Batch(clips, ["a", "b", "c"], torch.tensor([0, 3, 1]))
    chances = model.eval()(clips).log_softmax(1)
    expected = -(chances[0, 0] + chances[1, 3] + chances[2, 1]) / 3
    assert torch.allclose(FinetuneTask(model).loss(batch, (0,)), expected)
    smoothed = 0.9 * expected - 0.1 * chances.mean(1).mean()
    assert torch.allclose(FinetuneTask(model, smoothing=0.1).loss(batch, (0,)), smoothed)


def load_geometry() -> Any:
    from mgmae_cli.model.videomae import preset
    from mgmae_cli.model.weights import Geometry

    return Geometry(GRID, preset("tiny"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train__batch_size": 3}, r"train\.batch_size = 3: mixup and cutmix mix pairs; use an even number"),
        ({"data__samples_per_video": 3}, r"not a multiple of data\.samples_per_video = 3"),
        ({"augment__randaugment": "rand-m7-huge"}, r"augment\.randaugment = .*'huge' is no part.*rand-m7-n4"),
        ({"model__name": "base"}, r"test: model\.name = base: .* is tiny; drop the setting"),
        ({"data__size": 20}, r"test: data\.size: height 20 is not a multiple of model\.patch = 8; use 16 or 24"),
        ({"train__layer_decay": 1.5}, r"train\.layer_decay: 1\.5: input should be less than or equal to 1"),
        ({"augment__mixupp": 0.5}, r"augment\.mixupp: unknown key \(did you mean 'augment\.mixup'\?\)"),
        ({"val__options__split": "train"}, r"the same videos as in training"),
        ({"val__options__videoss": 3}, r"val\.options\.videoss.*has no option 'videoss' \(did you mean 'videos'\?\)"),
        ({"train__epochs": None, "train__steps": None}, r"neither train\.epochs nor train\.steps"),
        ({"val__path": "nowhere.csv"}, r"val\.path = nowhere\.csv: no such file or folder"),
    ],
)
def test_settings_that_are_wrong_are_answered(
    values: dict[str, Any], message: str, pretrained: Path, tmp_path: Path, registry: Registry
) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(pretrained, tmp_path / "run", registry, **values)
    assert not (tmp_path / "run").exists()


def test_frames_kept_elsewhere_do_not_make_other_videos(pretrained: Path, tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "list.csv").write_text("path,label,split\nlist.csv,a,train\n")
    listed = {"data__source": "list", "data__path": str(tmp_path / "list.csv"), "data__options": {"split": "train"}}
    with pytest.raises(ConfigError, match="the same videos as in training"):
        settings(pretrained, tmp_path, registry, **listed, val__options={"split": "train", "cache": "frames"})


def test_all_problems_are_told_at_once(pretrained: Path, tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(ConfigError) as error:
        settings(
            pretrained,
            tmp_path,
            registry,
            train__batch_size=3,
            augment__randaugment="rand-x",
            data__samples_per_video=2,
        )
    assert len(str(error.value).splitlines()) == 3


def test_a_checkpoint_must_be_named_and_be_one(tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(ConfigError, match=r"none given; name a checkpoint .* mgmae finetune runs/NAME"):
        resolve_finetune(None, Layer("test", SMALL), (), registry)
    with pytest.raises(CheckpointError, match=r"nothing: no such checkpoint or run folder"):
        settings(tmp_path / "nothing", tmp_path, registry)
    (tmp_path / "damaged.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"damaged\.pt: damaged, or not a checkpoint"):
        settings(tmp_path / "damaged.pt", tmp_path, registry)
    (tmp_path / "young" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"young: a run folder without a checkpoint"):
        settings(tmp_path / "young", tmp_path, registry)


def test_a_taken_folder_is_left_alone(pretrained: Path, tmp_path: Path, registry: Registry) -> None:
    run(settings(pretrained, tmp_path / "run", registry))
    before = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(RunError, match="already holds a run"):
        run(settings(pretrained, tmp_path / "run", registry, seed=5))
    assert (tmp_path / "run" / "config.yaml").read_text() == before


def test_a_resumed_run_keeps_its_settings(pretrained: Path, tmp_path: Path, registry: Registry) -> None:
    run(settings(pretrained, tmp_path / "run", registry))
    flags = Layer("command line", {"train.base_lr": 1.0}, {"train.base_lr": "--lr"})
    with pytest.raises(ConfigError, match=r"--lr: .*a resumed run keeps its settings"):
        resumed_finetune(tmp_path / "run", flags, registry=registry)
    half = Layer("--set", {"train.batch_size": 2, "train.accumulate": 2})
    with pytest.raises(ConfigError, match=r"train\.batch_size = 2: clips are mixed within a batch; resume with 4"):
        resumed_finetune(tmp_path / "run", half, registry=registry)
    shutil.copy(tmp_path / "run" / "config.yaml", pretrained / "config.yaml")
    with pytest.raises(ConfigError, match=r"is of a pretrain run; use mgmae pretrain"):
        resumed_finetune(pretrained, registry=registry)
    (pretrained / "config.yaml").unlink()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["x,a,train,1", "y,b,train,2"], r"no line has split 'val'"),
        (
            ["x,a,train,1", "y,,train,2", "z,a,val,3"],
            r"labels\.csv, line 3 .*y\): has no label, and training needs one",
        ),
        (["x,a,train,1", "y,b,val,2"], r"labels\.csv, line 3 .*class 'b' has 1 videos to test and none to train on"),
        (["x,a,train,1", "y,a,val,1"], r"group '1' is in both splits.*line 2 .*line 3"),
        (["x,a,train,1", "x,a,val,2"], r"line 3 .*is in both splits \(also .*line 2"),
    ],
)
def test_lists_whose_splits_do_not_fit_are_answered_with_the_line(
    rows: list[str], message: str, pretrained: Path, tmp_path: Path, registry: Registry
) -> None:
    for number, name in enumerate("xyz"):
        write_frames(tmp_path / name, seed=number)
    path = write_list(tmp_path / "labels.csv", rows)
    chosen = {"data__source": "list", "data__path": str(path), "data__options__split": "train"}
    with pytest.raises(DataError, match=message):
        run(settings(pretrained, tmp_path / "run", registry, **chosen))
    assert not (tmp_path / "run").exists()


def test_shapes_brings_sizes_for_trying_things_out_and_flags_go_over_them(
    pretrained: Path, tmp_path: Path, registry: Registry
) -> None:
    layer = Layer("test", {"checkpoint": str(pretrained), "train.base_lr": 1.0, "data.options.clips": 30})
    config = resolve_finetune(None, layer, (), registry).config
    assert (config.data.options["clips"], config.val.options["clips"]) == (30, 500)
    assert (config.train.epochs, config.train.base_lr, config.augment.mixup) == (10, 1.0, 0)
    assert config.val.options["split"] == "val"
    assert config.data.size == 16  # the checkpoint's, not the source's
    steps = resolve_finetune(None, Layer("test", {**layer.values, "train.steps": 5}), (), registry).config
    assert (steps.train.steps, steps.train.epochs) == (5, None)


def test_a_list_without_a_named_split_needs_videos_to_test_on(
    pretrained: Path, labelled_list: Path, tmp_path: Path, registry: Registry
) -> None:
    with pytest.raises(ConfigError, match=r"Give --val PATH, or name the split to train on"):
        settings(pretrained, tmp_path, registry, data__source="list", data__path=str(labelled_list))


def test_two_lists_agree_on_classes_by_name(
    pretrained: Path, labelled_list: Path, tmp_path: Path, registry: Registry
) -> None:
    """The second list holds class b alone, which would be number 0 by itself."""
    folder = labelled_list.parent
    train = write_list(tmp_path / "train.csv", [f"{folder}/clip0,a", f"{folder}/clip1,b"], "path,label")
    val = write_list(tmp_path / "val.csv", [f"{folder}/clip5,b"], "path,label")
    chosen = settings(
        pretrained, tmp_path / "run", registry, data__source="list", data__path=str(train), val__path=str(val)
    )
    from mgmae_cli.downstream.data import labelled
    from mgmae_cli.downstream.settings import open_train, open_val

    classes = labelled(open_train(chosen.resolved)).classes
    assert labelled(open_val(chosen.resolved), classes).labels == [1]
    result = run(chosen)
    assert result.last["step"] == 2


def test_a_checkpoint_of_other_tokens_is_fitted_by_resizing_its_embedding(tmp_path: Path, registry: Registry) -> None:
    start = write_checkpoint(tmp_path / "start")
    result = run(settings(start, tmp_path / "run", registry, model__patch=4))
    assert result.settings.grid.tokens == 2 * 4 * 4
    assert load_classifier(tmp_path / "run").weights.state["patch_embed.proj.weight"].shape == (128, 3, 2, 4, 4)
