"""Whole runs: what they write, and how they end when something is wrong."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mgmae_cli.engine import checkpoint
from mgmae_cli.engine.pretrain import default_out
from mgmae_cli.engine.run_folder import RunFolder
from mgmae_cli.engine.step import PretrainTask
from mgmae_cli.engine.trainer import Trainer
from mgmae_cli.errors import DataError, PluginError, RunError
from mgmae_cli.seeds import derive_generator
from tests.engine.conftest import micro_settings, read_losses, read_metrics, resume_micro, run_micro, saved, saved_steps


def test_a_run_leaves_config_metrics_environment_curves_and_a_checkpoint(tmp_path: Path) -> None:
    result, said = run_micro(tmp_path / "run", "train.steps=5")
    assert result.folder == tmp_path / "run"
    assert sorted(path.name for path in result.folder.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "tensorboard",
    ]
    assert [record["step"] for record in read_metrics(result.folder)] == [2, 4, 5]
    assert [record["epoch"] for record in read_metrics(result.folder)] == [0.6667, 1.3333, 1.6667]  # 4 of 12 a step
    assert saved_steps(result.folder) == [5]
    assert all(math.isfinite(record["clips_per_s"]) for record in read_metrics(result.folder))
    for fact in (
        "device         cpu, fp32",
        "data           12 videos from noise",
        "clips          4 x 16 x 16, stride 4",
        "mask           tube 0.5",
        "tokens         4 visible, 4 masked of 2 slots x 2 x 2",
        "clips per step 4 (4 a batch x 1 accumulated x 1 ranks)",
        "steps          5 (1.67 epochs)",
        "learning rate  base 0.5 x 4 clips / 256 = 0.00781",
        f"run folder     {result.folder}",
    ):
        assert " ".join(fact.split()) in " ".join(said.split())
    assert "step 5/5 epoch 1.67 loss " in said


def test_the_logged_loss_is_the_mean_of_the_steps_since_the_last_line(tmp_path: Path) -> None:
    run_micro(tmp_path / "each", "run.log_every=1")
    run_micro(tmp_path / "some", "run.log_every=4")
    each = [loss for _, loss in read_losses(tmp_path / "each")]
    assert len(each) == 6
    assert dict(read_losses(tmp_path / "some")) == pytest.approx(
        {4: sum(each[:4]) / 4, 6: sum(each[4:]) / 2}, rel=1e-12
    )


def test_a_run_learns(tmp_path: Path) -> None:
    run_micro(tmp_path / "run", "train.steps=60", "train.base_lr=3", "run.log_every=10", "data.options.videos=2")
    losses = [loss for _, loss in read_losses(tmp_path / "run")]
    assert losses[-1] < 0.8 * losses[0]


def test_checkpoints_come_every_n_steps_and_every_so_many_minutes(tmp_path: Path) -> None:
    run_micro(tmp_path / "steps", "run.save_every=2", "run.keep_last=1", "train.steps=7")
    assert saved_steps(tmp_path / "steps") == [2, 4, 6, 7]
    run_micro(tmp_path / "last", "run.keep_last=3", "train.steps=7")
    assert saved_steps(tmp_path / "last") == [7]
    run_micro(tmp_path / "minutes", "run.checkpoint_minutes=1e-9", "run.keep_last=3", "train.steps=7")
    assert saved_steps(tmp_path / "minutes") == [5, 6, 7]


def test_an_infinite_loss_ends_the_run_with_its_step_and_clips_and_keeps_the_checkpoint(
    tmp_path: Path, lose_at: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_at(5)
    names = []
    whole = PretrainTask.loss

    def loss(self: PretrainTask, batch: Any, key: tuple[int, ...]) -> torch.Tensor:
        names.append(batch.names)
        return whole(self, batch, key)

    monkeypatch.setattr(PretrainTask, "loss", loss)
    with pytest.raises(RunError) as caught:
        run_micro(tmp_path / "run", "run.save_every=2", "run.log_every=100")
    text = str(caught.value)
    assert text.startswith("the loss of step 5 is inf; the checkpoint of step 4 is kept. Try a lower --lr, ")
    assert text.endswith(f"Its clips: {', '.join(dict.fromkeys(names[4]))}")
    assert "\n" not in text
    assert saved_steps(tmp_path / "run") == [2, 4]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in saved(tmp_path / "run", 4)["model"].values())
    assert all(math.isfinite(loss) for _, loss in read_losses(tmp_path / "run"))


def test_an_infinite_loss_before_the_first_checkpoint_says_that_there_is_none(
    tmp_path: Path, lose_at: Callable[[int], None]
) -> None:
    lose_at(1)
    with pytest.raises(RunError, match=r"^the loss of step 1 is inf; nothing was saved yet\. "):
        run_micro(tmp_path / "run", "run.save_every=1")
    assert saved_steps(tmp_path / "run") == []


def test_after_mending_the_cause_a_run_goes_on_from_the_kept_checkpoint(
    tmp_path: Path, lose_at: Callable[[int], None]
) -> None:
    lose_at(5)
    with pytest.raises(RunError):
        run_micro(tmp_path / "run", "run.save_every=2")
    lose_at(0)
    resume_micro(tmp_path / "run")
    run_micro(tmp_path / "whole")
    assert read_losses(tmp_path / "run") == read_losses(tmp_path / "whole")


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(self: Trainer) -> None:
        with torch.no_grad():
            next(iter(self.task.module.parameters())).view(-1)[0] = torch.nan

    monkeypatch.setattr(Trainer, "_read_losses", spoil)
    monkeypatch.setattr(Trainer, "_log", lambda self: None)
    with pytest.raises(RunError, match=r"^weights are not finite after step 2; nothing was saved yet"):
        run_micro(tmp_path / "run", "run.save_every=2")
    assert saved_steps(tmp_path / "run") == []


def test_a_second_run_in_a_folder_is_refused_before_any_work_and_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_micro(tmp_path / "run")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(Trainer, "fit", lambda *_: pytest.fail("it trained"))
    with pytest.raises(
        RunError, match=r"already holds a run; go on with it by --resume .*run, or choose another --out$"
    ):
        run_micro(tmp_path / "run", "seed=5")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_without_a_folder_gets_a_new_one_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = micro_settings(tmp_path).config
    names = []
    for _ in range(3):
        names.append(default_out(config))
        names[-1].mkdir(parents=True)
    assert len(set(names)) == 3
    assert all(name.parts[0] == "runs" and name.name.startswith("tube-tiny-2") for name in names)


def test_a_disk_that_fills_up_ends_the_run_in_one_line_and_keeps_older_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = torch.save

    def save(payload: Any, file: Any) -> None:
        if payload["step"] == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(payload, file)

    monkeypatch.setattr(checkpoint.torch, "save", save)
    with pytest.raises(
        RunError, match=r"step-000004.pt: checkpoint not saved: No space left on device; older ones are"
    ):
        run_micro(tmp_path / "run", "run.save_every=2", "run.keep_last=1")
    assert saved_steps(tmp_path / "run") == [2]
    assert not list((tmp_path / "run/checkpoints").glob(".*"))
    monkeypatch.undo()


def test_metrics_that_can_not_be_written_end_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def log(self: RunFolder, record: object) -> None:
        raise RunError(f"{self.path}/metrics.jsonl: can't be written: No space left on device")

    monkeypatch.setattr(RunFolder, "log", log)
    with pytest.raises(RunError, match=r"metrics.jsonl: can't be written"):
        run_micro(tmp_path / "run")


def test_unreadable_videos_are_skipped_counted_and_listed(tmp_path: Path) -> None:
    _, said = run_micro(tmp_path / "run", "data.options.bad=[3, 7]", "train.steps=6", "run.log_every=3")
    assert (tmp_path / "run/skipped.txt").read_text() == "noise 3\tbroken\nnoise 7\tbroken\n"
    assert [record["skipped"] for record in read_metrics(tmp_path / "run")][-1] == 2
    assert said.count("skipped noise 3: broken\n") == 1
    assert saved(tmp_path / "run", 6)["bad"] == {"noise 3": "broken", "noise 7": "broken"}


def test_too_many_unreadable_videos_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        run_micro(tmp_path / "run", "data.options.bad=[0, 3, 7]", "train.steps=30")
    assert str(caught.value).startswith(
        "3 of 12 videos can't be read, more than data.max_bad_share = 0.2; mend or remove those in skipped.txt"
    )
    assert len((tmp_path / "run/skipped.txt").read_text().splitlines()) == 3
    run_micro(tmp_path / "more", "data.options.bad=[0, 3, 7]", "data.max_bad_share=0.25")


def test_a_resumed_run_remembers_unreadable_videos(tmp_path: Path) -> None:
    run_micro(tmp_path / "run", "data.options.bad=[3, 7]", "run.save_every=3")
    (tmp_path / "run/checkpoints/step-000006.pt").unlink()
    _, said = resume_micro(tmp_path / "run")
    assert "skipped" not in said
    assert read_metrics(tmp_path / "run")[-1]["skipped"] == 2
    assert saved(tmp_path / "run", 6)["bad"] == {"noise 3": "broken", "noise 7": "broken"}


def test_a_mask_plugin_that_returns_the_wrong_thing_is_named_from_inside_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mgmae_cli.masking.tube import TubeMask

    monkeypatch.setattr(TubeMask, "sample", lambda self, inputs: torch.zeros(1, 3, dtype=torch.bool))
    for workers in (0, 1):
        with pytest.raises(PluginError, match=r"'tube'.*\(1, 3\)") as caught:
            run_micro(tmp_path / f"run{workers}", f"data.workers={workers}")
        assert "\n" not in str(caught.value)


def test_too_little_gpu_memory_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(self: PretrainTask, batch: Any, key: tuple[int, ...]) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has")

    monkeypatch.setattr(PretrainTask, "loss", loss)
    with pytest.raises(RunError, match=r"^the GPU's memory does not hold step 1 .*: lower --batch-size and raise") as e:
        run_micro(tmp_path / "run")
    assert "\n" not in str(e.value)


def test_initial_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    from mgmae_cli.engine import distributed
    from mgmae_cli.engine.pretrain import pretrain_job

    def weights(seed: int) -> dict[str, torch.Tensor]:
        settings = micro_settings(tmp_path, f"seed={seed}")
        place = distributed.find_place("cpu", "fp32")
        return pretrain_job(settings, settings.make_masker(), place)[1].state_dict()

    first = weights(1)
    torch.manual_seed(99)
    assert all(torch.equal(one, two) for one, two in zip(first.values(), weights(1).values()))
    assert any(not torch.equal(one, two) for one, two in zip(first.values(), weights(2).values()))
    assert derive_generator(1, 2).initial_seed() != derive_generator(2, 1).initial_seed()
