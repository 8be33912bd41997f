"""A resumed run is the run that was never interrupted."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from mgmae_cli.config import Layer, recipe_layer, set_layer
from mgmae_cli.engine import step as steps
from mgmae_cli.engine import trainer
from mgmae_cli.engine.pretrain import resumed_settings
from mgmae_cli.engine.resume import _may_change
from mgmae_cli.errors import CheckpointError, ConfigError, Interrupted, RunError
from tests.engine.conftest import (
    equal,
    micro_registry,
    read_losses,
    read_metrics,
    resume_micro,
    run_micro,
    saved,
    saved_steps,
)


def _run_until(step: int, out: Path, monkeypatch: pytest.MonkeyPatch, *assignments: str) -> None:
    """Run, and get a SIGTERM in the middle of a step."""

    def train_step(*arguments: Any) -> torch.Tensor:
        if arguments[4][1] + 1 == step:
            signal.raise_signal(signal.SIGTERM)
        return steps.train_step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", train_step)
        with pytest.raises(
            Interrupted, match=rf"^stopped by SIGTERM; step {step} is saved; go on with --resume {out}$"
        ):
            run_micro(out, *assignments)


@pytest.mark.parametrize(
    "assignments",
    [
        ["train.steps=20", "run.log_every=4"],
        ["train.steps=20", "mask.name=motion", "flow.name=zero", "train.accumulate=2", "data.samples_per_video=2"],
        ["train.steps=20", "run.precision=bf16", "model.decoder_mask=running_cell", "train.clip_grad=0.1"],
    ],
    ids=["plain", "accumulated motion masks", "bf16 running cell"],
)
@pytest.mark.parametrize("stop", [10, 7])
def test_steps_in_two_parts_are_the_steps_in_one_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assignments: list[str], stop: int
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_micro(whole, *assignments)
    _run_until(stop, parts, monkeypatch, *assignments)
    assert saved_steps(parts) == [stop]
    torch.manual_seed(12345)  # whatever else draws in the meantime
    resume_micro(parts)
    for part in ("model", "optimizer", "bad", "window"):
        assert equal(saved(parts, 20)[part], saved(whole, 20)[part]), part
    assert read_losses(parts) == read_losses(whole)
    assert [record["lr"] for record in read_metrics(parts)] == [record["lr"] for record in read_metrics(whole)]


def test_runs_with_one_seed_are_equal_and_with_another_differ(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_micro(tmp_path / name, f"seed={seed}")
    assert equal(saved(tmp_path / "a", 6)["model"], saved(tmp_path / "b", 6)["model"])
    assert read_losses(tmp_path / "a") == read_losses(tmp_path / "b") != read_losses(tmp_path / "c")


def test_the_damaged_newest_checkpoint_is_passed_over_with_a_note(tmp_path: Path) -> None:
    run_micro(tmp_path / "run", "run.save_every=2")
    before = saved(tmp_path / "run", 6)
    newest = tmp_path / "run/checkpoints/step-000006.pt"
    newest.write_bytes(newest.read_bytes()[:-2000])
    _, said = resume_micro(tmp_path / "run")
    assert f"{newest}: damaged or not a checkpoint: " in said
    assert "resuming from " in said
    assert "step-000004.pt" in said
    assert equal(saved(tmp_path / "run", 6)["model"], before["model"])
    assert [step for step, _ in read_losses(tmp_path / "run")] == [2, 4, 6]


def test_only_damaged_checkpoints_are_an_error_naming_them(tmp_path: Path) -> None:
    run_micro(tmp_path / "run")
    path = tmp_path / "run/checkpoints/step-000006.pt"
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"step-000006.pt: damaged or not a checkpoint: "):
        resume_micro(tmp_path / "run")
    assert path.read_bytes() == b""


def test_a_run_that_saved_nothing_yet_starts_again_from_its_settings(tmp_path: Path) -> None:
    run_micro(tmp_path / "whole")
    run_micro(tmp_path / "run")
    for path in (tmp_path / "run/checkpoints").iterdir():
        path.unlink()
    _, said = resume_micro(tmp_path / "run")
    assert "no checkpoint was saved yet: starting from the first step" in said
    assert equal(saved(tmp_path / "run", 6)["model"], saved(tmp_path / "whole", 6)["model"])
    assert read_losses(tmp_path / "run") == read_losses(tmp_path / "whole")


def test_metrics_of_steps_that_are_done_again_are_dropped(tmp_path: Path) -> None:
    run_micro(tmp_path / "run", "run.save_every=2")
    once = read_losses(tmp_path / "run")
    (tmp_path / "run/checkpoints/step-000006.pt").unlink()
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # cut off by a crash
    resume_micro(tmp_path / "run")
    assert read_losses(tmp_path / "run") == once


def test_a_finished_run_resumed_changes_nothing(tmp_path: Path) -> None:
    run_micro(tmp_path / "run")
    before = (tmp_path / "run/metrics.jsonl").read_text(), saved(tmp_path / "run", 6)
    resume_micro(tmp_path / "run")
    assert equal(before, ((tmp_path / "run/metrics.jsonl").read_text(), saved(tmp_path / "run", 6)))


def test_a_resumed_run_keeps_its_settings_and_names_all_that_would_change(tmp_path: Path) -> None:
    run_micro(tmp_path / "run")
    flags = Layer("command line", {"train.base_lr": 0.1, "seed": 0}, {"train.base_lr": "--lr", "seed": "--seed"})
    with pytest.raises(ConfigError) as caught:
        resumed_settings(tmp_path / "run", flags, set_layer(["mask.ratio=0.75", "run.log_every=1"]), micro_registry())
    assert sorted(str(caught.value).splitlines()) == [
        "--lr: train.base_lr: a resumed run keeps its settings (train.base_lr = 0.5); drop it, or start a new run",
        "--set mask.ratio: a resumed run keeps its settings (mask.ratio = 0.5); drop it, or start a new run",
    ]


def test_a_resumed_run_may_keep_decoded_frames_elsewhere() -> None:
    assert all(_may_change(f"{section}.options.cache{end}") for section in ("data", "val") for end in ("", "_gb"))
    assert not _may_change("data.options.decoder")


def test_a_setting_repeated_in_other_words_is_no_change(tmp_path: Path) -> None:
    run_micro(tmp_path / "run", "train.base_lr=0.001")
    again = set_layer(["train.base_lr=1e-3", "data.workers='1'", "run.checkpoint_minutes=1", "train.betas=[0.9, 0.95]"])
    settings = resumed_settings(tmp_path / "run", None, again, micro_registry())
    assert settings.config.data.workers == 1
    assert settings.config.run.checkpoint_minutes == 1


def test_a_folder_without_a_run_can_not_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--resume .*: not a run folder: it has no config.yaml$"):
        resumed_settings(tmp_path, None, None, micro_registry())


def test_a_moved_run_goes_on_where_it_is_now(tmp_path: Path) -> None:
    run_micro(tmp_path / "old", "run.save_every=2")
    (tmp_path / "old/checkpoints/step-000006.pt").unlink()
    (tmp_path / "old").rename(tmp_path / "new")
    result, _ = resume_micro(tmp_path / "new")
    assert result.folder == tmp_path / "new"
    assert saved_steps(tmp_path / "new") == [2, 4, 6]
    assert not (tmp_path / "old").exists()


def test_a_step_may_be_divided_anew_but_holds_as_many_clips(tmp_path: Path) -> None:
    for name in ("whole", "run"):
        run_micro(tmp_path / name, "run.save_every=2", "train.steps=4")
    (tmp_path / "run/checkpoints/step-000004.pt").unlink()
    with pytest.raises(
        ConfigError, match=r"^train.accumulate: the run had 4 clips a step, and 1 processes now make 2; "
    ):
        resume_micro(tmp_path / "run", "train.batch_size=2")
    resume_micro(tmp_path / "run", "train.batch_size=2", "train.accumulate=2")
    for (step, loss), (_, other) in zip(read_losses(tmp_path / "run"), read_losses(tmp_path / "whole")):
        assert loss == pytest.approx(other, rel=1e-5), step


def test_other_data_than_before_is_noted(tmp_path: Path) -> None:
    run_micro(tmp_path / "run", "run.save_every=2")
    (tmp_path / "run/checkpoints/step-000006.pt").unlink()
    config = tmp_path / "run/config.yaml"
    config.write_text(config.read_text().replace("videos: 12", "videos: 13"))
    assert (
        "the data held 12 videos, and holds 13 now: their order changes from here on"
        in resume_micro(tmp_path / "run")[1]
    )


def test_a_checkpoint_of_another_model_or_kind_is_refused(tmp_path: Path) -> None:
    run_micro(tmp_path / "run")
    config = tmp_path / "run/config.yaml"
    config.write_text(config.read_text().replace("decoder_depth: 1", "decoder_depth: 2"))
    with pytest.raises(CheckpointError, match=r"step-000006.pt: does not fit the model that config.yaml describes: "):
        resume_micro(tmp_path / "run")
    path = tmp_path / "run/checkpoints/step-000006.pt"
    torch.save({**saved(tmp_path / "run", 6), "kind": "finetune"}, path)
    with pytest.raises(CheckpointError, match=r"is of mgmae finetune, not of mgmae pretrain$"):
        resume_micro(tmp_path / "run")


def test_config_yaml_is_a_recipe_for_the_same_run(tmp_path: Path) -> None:
    run_micro(tmp_path / "run")
    text = (tmp_path / "run/config.yaml").read_text()
    assert text.startswith(
        "# Resolved settings of this run; a valid recipe: mgmae pretrain config.yaml --out NEW_FOLDER"
    )
    values = recipe_layer(tmp_path / "run/config.yaml").values
    assert values["run.precision"] == "fp32"  # what `auto` meant
    assert values["data.options.videos"] == 12
    with pytest.raises(RunError, match="already holds a run"):
        run_micro(tmp_path / "run")


def test_each_part_of_a_run_leaves_its_environment(tmp_path: Path) -> None:
    run_micro(tmp_path / "run", "run.save_every=2")
    (tmp_path / "run/checkpoints/step-000006.pt").unlink()
    resume_micro(tmp_path / "run")
    for name in ("environment.json", "environment-resumed-4.json"):
        environment = json.loads((tmp_path / "run" / name).read_text())
        assert environment["packages"]["torch"] == torch.__version__.partition("+")[0]
        assert environment["device"] == "cpu"
        assert "tests 1.0" in environment["plugins"]
