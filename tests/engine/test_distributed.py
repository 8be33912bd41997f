"""Places and ranks, as torchrun and srun announce them, and several real processes on one CPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mgmae_cli.engine import distributed
from mgmae_cli.engine.distributed import any_rank, find_place, gather, mean_over_ranks, together
from mgmae_cli.errors import ConfigError
from tests.engine.conftest import read_losses, read_metrics, run_micro, saved, saved_steps

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def _no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*NAMES, *(name for name in os.environ if name.startswith("SLURM_"))]:
        monkeypatch.delenv(name, raising=False)


def _ranks(monkeypatch: pytest.MonkeyPatch, **variables: str) -> tuple[int, int, int, int]:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return distributed._find_ranks()


def test_one_process_is_alone_and_agrees_with_itself() -> None:
    place = find_place("cpu")
    assert (place.rank, place.ranks, place.local_ranks, place.is_main, place.precision) == (0, 1, 1, True, "fp32")
    assert any_rank(True, False) == [True, False]
    assert gather("x") == ["x"]
    assert mean_over_ranks(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]
    with pytest.raises(KeyError, match="own"), together():
        raise KeyError("own")


def test_torchrun_names_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}  # torchrun inside srun
    ranks = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert _ranks(monkeypatch, **slurm, **ranks) == (5, 8, 1, 4)


def test_srun_names_the_ranks_and_binds_their_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    step = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "6", "SLURM_LOCALID": "2"}
    assert _ranks(monkeypatch, **step, SLURM_STEP_TASKS_PER_NODE="4(x2)") == (6, 8, 2, 4)
    assert _ranks(monkeypatch, SLURM_CPUS_PER_TASK="12") == (6, 8, 2, 1)


def test_a_batch_script_without_srun_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _ranks(monkeypatch, SLURM_NTASKS="8", SLURM_PROCID="0", SLURM_JOB_ID="1") == (0, 1, 0, 1)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu[003-004,7],cpu1", "gpu003"),
        ("node-1-[3-5]", "node-1-3"),
        ("a1,a2", "a1"),
        ("rack[1-2]node[05-06]-ib", "rack1node05-ib"),
    ],
)
def test_ranks_meet_on_the_first_machine_of_slurms_list(monkeypatch: pytest.MonkeyPatch, nodes: str, host: str) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", nodes)
    monkeypatch.setenv("SLURM_NNODES", "2")
    assert distributed._meeting_host() == host
    monkeypatch.setenv("SLURM_NNODES", "1")
    assert distributed._meeting_host() == "127.0.0.1"


def test_jobs_and_steps_of_a_machine_meet_at_different_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = set()
    for job, step in (("100", "0"), ("101", "0"), ("100", "1")):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_STEP_ID", step)
        ports.add(distributed._meeting_port())
    assert len(ports) == 3
    assert all(20000 <= port < 40000 for port in ports)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "run.device = 'gpu': not a device; use auto, cpu, cuda or cuda:N"),
        ("cuda:99", "run.device = 'cuda:99': this machine offers 0 CUDA devices; use --device cpu"),
        ("meta", "run.device = 'meta': not supported; use auto, cpu, cuda or cuda:N"),
    ],
)
def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError) as caught:
        find_place(name)
    assert str(caught.value) == message


def test_each_rank_takes_its_gpu_or_the_only_one_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert distributed._device("auto", local_rank=3, ranks=8) == torch.device("cuda:3")
    assert distributed._device("cuda:1", local_rank=0, ranks=1) == torch.device("cuda:1")
    with pytest.raises(ConfigError, match=r"'cuda:1': names one device for 8 processes; use cuda$"):
        distributed._device("cuda:1", local_rank=0, ranks=8)
    with pytest.raises(ConfigError, match="this machine offers 4 CUDA devices"):
        distributed._device("cuda", local_rank=4, ranks=8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert distributed._device("cuda", local_rank=3, ranks=8) == torch.device("cuda:0")


def test_precision_is_chosen_by_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    found = [distributed._precision(*asked) for asked in (("auto", cpu), ("bf16", cpu), ("auto", cuda), ("fp32", cuda))]
    assert found == ["fp32", "bf16", "bf16", "fp32"]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert distributed._precision("auto", cuda) == "fp32"
    with pytest.raises(ConfigError, match="this GPU has no bfloat16"):
        distributed._precision("bf16", cuda)


# --- several processes --------------------------------------------------------------------------------------------

SCRIPT = """
import os, sys
from pathlib import Path
import torch
from mgmae_cli.engine.pretrain import pretrain
from mgmae_cli.engine.step import PretrainTask
from mgmae_cli.errors import MgmaeError
from mgmae_cli.model import videomae
from tests.engine.conftest import MICRO, micro_settings
videomae.SIZES["tiny"] = MICRO
torch.set_num_threads(1)
whole = PretrainTask.loss
def infinite_on_rank_1(self, batch, key):
    value = whole(self, batch, key)
    return value * torch.inf if key[1:3] == (3, 1) else value
ports = sys.argv[2].split(",")
for line, port in zip(sys.stdin.read().splitlines(), ports):
    name, *assignments = line.split("|")
    os.environ["MASTER_PORT"] = port
    PretrainTask.loss = infinite_on_rank_1 if name == "infinite" else whole
    try:
        pretrain(micro_settings(Path(sys.argv[1]) / name, *assignments))
        print(f"{name}: done")
    except MgmaeError as error:
        print(f"{name}: {error}")
"""
SETTINGS = ["mask.name=random", "train.accumulate=2", "data.options.bad=[3]", "train.clip_grad=0.5"]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]]]:
    """Run several runs on two ranks; return their folder and, for each rank, how each run ended."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "taken").mkdir()
    (folder / "taken/config.yaml").touch()
    runs = ["|".join(["learn", "train.batch_size=2", *SETTINGS]), "infinite|run.save_every=2", "taken"]
    sockets = [socket.socket() for _ in runs]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
    ports = ",".join(str(free.getsockname()[1]) for free in sockets)
    for free in sockets:
        free.close()
    ranks = []
    for rank in range(2):
        place = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}
        place |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": 1, "PYTHONPATH": ROOT}
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-W", "error::FutureWarning", "-c", SCRIPT, str(folder), ports],
                env={**os.environ, **{name: str(value) for name, value in place.items()}},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        assert ranks[-1].stdin is not None
        ranks[-1].stdin.write("\n".join(runs))
        ranks[-1].stdin.flush()
        ranks[-1].stdin.close()
        ranks[-1].stdin = None
    try:
        said = [process.communicate(timeout=180) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], said
    return folder, [dict(line.split(": ", 1) for line in out.splitlines()) for out, _ in said]


def test_two_processes_take_the_steps_of_one_with_the_double_batch(
    two_processes: tuple[Path, list[dict[str, str]]], tmp_path: Path
) -> None:
    folder, ended = two_processes
    assert [rank["learn"] for rank in ended] == ["done", "done"]
    # a step of two ranks with two batches of 2 each holds the videos of one rank with two batches of 4
    run_micro(tmp_path / "one", "train.batch_size=4", *SETTINGS)
    two, one = dict(read_losses(folder / "learn")), dict(read_losses(tmp_path / "one"))
    assert list(two) == [2, 4, 6]
    assert two == pytest.approx(one, rel=1e-5)
    weights = saved(tmp_path / "one", 6)["model"]
    for name, tensor in saved(folder / "learn", 6)["model"].items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=1e-4)


def test_an_unreadable_video_is_listed_whichever_rank_met_it(two_processes: tuple[Path, list[dict[str, str]]]) -> None:
    folder, _ = two_processes
    assert (folder / "learn/skipped.txt").read_text() == "noise 3\tbroken\n"
    assert read_metrics(folder / "learn")[-1]["skipped"] == 1


def test_a_loss_that_is_infinite_on_one_rank_ends_all_and_names_that_ranks_clips(
    two_processes: tuple[Path, list[dict[str, str]]],
) -> None:
    folder, (main, other) = two_processes
    assert main["infinite"].startswith("the loss of step 4 is inf; the checkpoint of step 2 is kept")
    assert main["infinite"] == other["infinite"]
    assert len(main["infinite"].rpartition("Its clips: ")[2].split(", ")) == 4  # of 8 in the step
    assert saved_steps(folder / "infinite") == [2]


def test_what_ends_the_main_process_ends_the_other(two_processes: tuple[Path, list[dict[str, str]]]) -> None:
    _, (main, other) = two_processes
    assert "already holds a run" in main["taken"]
    assert other["taken"].startswith("another process of this run met an error and said which")
