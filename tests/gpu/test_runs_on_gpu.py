"""Whole runs and commands on the GPU."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from mgmae_cli.bench.step import StepSpec, example_batch
from mgmae_cli.engine.distributed import Place, any_rank, gather, mean_over_ranks
from mgmae_cli.engine.optim import decay_groups, make_adamw
from mgmae_cli.engine.run import wrap
from mgmae_cli.engine.run_folder import read_metrics
from mgmae_cli.engine.step import PretrainTask, train_step
from mgmae_cli.grid import ClipGrid
from mgmae_cli.masking.masker import Masker
from mgmae_cli.masking.tube import TubeMask
from mgmae_cli.model.videomae import build_videomae

MGMAE = Callable[..., int]
SMALL = ("--model", "tiny", "--batch-size", "8", "--workers", "2", "--set", "data.size=64", "--set", "run.log_every=2")


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(run)]


def test_auto_takes_the_gpu_and_bf16_and_goes_on_where_it_stopped(
    mgmae: MGMAE, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert mgmae("pretrain", *SMALL, "--steps", 12, "--out", whole) == 0
    said = capfd.readouterr()
    assert f"({torch.cuda.get_device_name(0)}), bf16" in " ".join((said.out + said.err).split())
    assert json.loads((whole / "environment.json").read_text())["device"].startswith("cuda:0 (")
    assert mgmae("pretrain", *SMALL, "--steps", 12, "--set", "run.save_every=6", "--out", parts) == 0
    for late in parts.glob("checkpoints/step-000012.pt"):
        late.unlink()
    assert mgmae("pretrain", "--resume", parts) == 0
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-2)  # attention's gradients are summed in any order
    assert losses(whole)[-1] < losses(whole)[0]


def test_compiled_runs_learn_alike(mgmae: MGMAE, tmp_path: Path) -> None:
    eager, compiled = tmp_path / "eager", tmp_path / "compiled"
    assert mgmae("pretrain", *SMALL, "--steps", 8, "--out", eager) == 0
    assert mgmae("pretrain", *SMALL, "--steps", 8, "--set", "run.compile=true", "--out", compiled) == 0
    assert losses(compiled) == pytest.approx(losses(eager), rel=1e-2)


def test_motion_masks_by_raft_are_drawn_on_the_gpu(mgmae: MGMAE, tmp_path: Path, shared_data: Path) -> None:
    weights = shared_data / "weights" / "raft-small.pth"
    flow = ("--mask", "motion", "--flow", "raft", "--set", f"flow.options.weights={weights}")
    for name, more in {"bf16": (), "fp32": ("--set", "flow.options.precision=fp32", "--precision", "fp32")}.items():
        run = tmp_path / name
        assert mgmae("pretrain", *SMALL, *flow, *more, "--set", "data.size=128", "--steps", 4, "--out", run) == 0
        assert losses(run)[-1] < 1.5
    assert losses(tmp_path / "bf16") == pytest.approx(losses(tmp_path / "fp32"), rel=0.02)


def test_what_was_pretrained_is_judged_on_the_gpu(mgmae: MGMAE, tmp_path: Path) -> None:
    run, tuned = tmp_path / "run", tmp_path / "tuned"
    few = ("--set", "data.options.clips=20", "--set", "val.options.clips=10", "--workers", "0")
    assert mgmae("pretrain", *SMALL, "--steps", 2, "--out", run) == 0
    assert mgmae("finetune", run, "--steps", 4, "--batch-size", 4, "--out", tuned, *few) == 0
    assert mgmae("evaluate", tuned, "--clips", 2, "--out", tmp_path / "test", "--workers", "0") == 0
    assert json.loads((tmp_path / "test" / "results.json").read_text())["videos"] == 10
    assert mgmae("probe", run, "--set", "probe.epochs=2", "--out", tmp_path / "probe", *few) == 0
    assert mgmae("probe", run, "--kind", "knn", "--k", 3, "--out", tmp_path / "knn", *few) == 0
    assert mgmae("features", run, "--set", "data.options.clips=4", "--workers", "0", "--out", tmp_path / "out") == 0


def test_an_ablation_shares_the_gpu(mgmae: MGMAE, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "question: does it run?\n"
        "base:\n"
        "  model: {name: tiny}\n"
        "  data: {source: shapes, size: 64, workers: 1}\n"
        "  train: {steps: 3, batch_size: 8}\n"
        "sweep: {mask.name: [tube, motion]}\n"
        "seeds: 2\n"
        "evaluate: {loss: {}, leakage: {clips: 4}}\n"
    )
    assert mgmae("ablate", recipe, "--jobs", 2, "--out", tmp_path / "ablation") == 0
    assert (tmp_path / "ablation" / "report.html").is_file()


def test_too_large_a_batch_is_told_in_one_line_with_the_fix(
    mgmae: MGMAE, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-3)
    try:
        assert mgmae("pretrain", *SMALL, "--batch-size", 256, "--steps", 2, "--out", tmp_path / "run") == 2
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: the GPU's memory does not hold ")
    assert "lower --batch-size" in line


@pytest.fixture
def one_rank() -> Iterator[None]:
    """Join a group of one process, as `find_place` joins one of many."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531"}
    dist.init_process_group("cpu:gloo,cuda:nccl", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_ranks_average_gradients_by_nccl_and_agree_by_gloo(gpu: torch.device, one_rank: None) -> None:
    grid = ClipGrid(4, 64, 64, 2, 16)
    masker = Masker(TubeMask(TubeMask.Options()), None, grid, 0.75)
    batch = example_batch(StepSpec("tiny", "bf16", grid, 0.75, 4, "cuda"))
    found = []
    for ranks in (1, 2):  # with two, the model is wrapped, though the group has one
        place = Place(gpu, "bf16", 0, ranks)
        model = build_videomae("tiny", grid, seed=0).to(gpu)
        module = wrap(model, place, compiled=False)
        assert isinstance(module, DistributedDataParallel) == (ranks > 1)
        optimizer = make_adamw(decay_groups(model, 0.05), 1e-3, (0.9, 0.95), gpu)
        task = PretrainTask(module, masker)
        steps = [train_step(task, [batch, batch], optimizer, place, (0, number)) for number in range(3)]
        found.append(torch.stack(steps).tolist())
    assert found[1] == pytest.approx(found[0], rel=1e-3)
    assert any_rank(True, False) == [True, False]
    assert mean_over_ranks(torch.tensor([2.0])).tolist() == [2.0]
    assert gather("a") == ["a"]
