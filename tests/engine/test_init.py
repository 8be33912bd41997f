"""`model.init`: runs that start from given weights, in any format, and go on without them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mgmae_cli.config import Layer, set_layer
from mgmae_cli.engine.pretrain import pretrain, resumed_settings
from mgmae_cli.errors import CheckpointError, ConfigError
from mgmae_cli.model.formats_read import read_weights
from mgmae_cli.model.formats_write import Format, write_weights
from mgmae_cli.settings import resolve
from tests.engine.conftest import equal, micro_registry, micro_settings, read_losses, resume_micro, run_micro, saved


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """Return the folder of a finished run of another seed."""
    run_micro(tmp_path / "earlier", "seed=7")
    return tmp_path / "earlier"


@pytest.mark.parametrize(
    ("to", "origin"),
    [
        ("mgmae", "mgmae pre-training model after 6 steps"),
        ("official", "mgmae pre-training model"),  # ours, in official names
        ("hf", "transformers pre-training model"),
    ],
)
def test_every_format_gives_the_same_start_and_is_told(earlier: Path, tmp_path: Path, to: Format, origin: str) -> None:
    other = tmp_path / "weights"
    write_weights(read_weights(earlier), other, to)
    size = "encoder 16 x 1 with 2 heads, decoder 8 x 1 with 2 heads, clips 4 x 16 x 16, tokens 2 x 8 x 8"
    _, said = run_micro(tmp_path / "a", f"model.init={earlier}")
    assert f"start {earlier}/checkpoints/step-000006.pt: mgmae pre-training model after 6 steps: {size}" in _flat(said)
    _, said = run_micro(tmp_path / "b", f"model.init={other}")
    assert f"start {other}: {origin}: {size}" in _flat(said)
    assert ("eps of norms is 1e-06, not 1e-05" in _flat(said)) == (to == "hf")
    run_micro(tmp_path / "random")
    assert read_losses(tmp_path / "a") == read_losses(tmp_path / "b") != read_losses(tmp_path / "random")
    assert equal(saved(tmp_path / "a", 6)["model"], saved(tmp_path / "b", 6)["model"])


def _flat(text: str) -> str:
    return " ".join(text.split())


def test_the_first_step_is_done_on_the_given_weights(earlier: Path, tmp_path: Path) -> None:
    run_micro(tmp_path / "run", f"model.init={earlier}", "train.steps=1", "train.base_lr=1e-12", "train.min_base_lr=0")
    start, end = saved(earlier, 6)["model"], saved(tmp_path / "run", 1)["model"]
    assert all(torch.allclose(end[name], tensor, atol=1e-7) for name, tensor in start.items())


def test_the_config_names_the_file_so_that_a_rerun_starts_from_the_same(earlier: Path, tmp_path: Path) -> None:
    run_micro(tmp_path / "run", f"model.init={earlier}")
    newer = {**saved(earlier, 6), "model": saved(tmp_path / "run", 6)["model"]}
    torch.save(newer, earlier / "checkpoints" / "step-000009.pt")
    again = Layer("test", {"run.out": str(tmp_path / "again")})
    settings = resolve(tmp_path / "run" / "config.yaml", again, (), micro_registry())
    assert settings.config.model.init == earlier / "checkpoints" / "step-000006.pt"
    pretrain(settings, console=Console(quiet=True))
    assert read_losses(tmp_path / "again") == read_losses(tmp_path / "run")


def test_a_run_goes_on_when_the_weights_it_started_from_are_gone(earlier: Path, tmp_path: Path) -> None:
    run_micro(tmp_path / "run", f"model.init={earlier}", "run.save_every=2")
    whole = saved(tmp_path / "run", 6)["model"]
    (tmp_path / "run/checkpoints/step-000006.pt").unlink()
    shutil.rmtree(earlier)
    resume_micro(tmp_path / "run")
    assert equal(saved(tmp_path / "run", 6)["model"], whole)


def test_a_run_that_saved_nothing_yet_needs_them_again(earlier: Path, tmp_path: Path) -> None:
    run_micro(tmp_path / "run", f"model.init={earlier}")
    whole = saved(tmp_path / "run", 6)["model"]
    (tmp_path / "run/checkpoints/step-000006.pt").unlink()
    resume_micro(tmp_path / "run")
    assert equal(saved(tmp_path / "run", 6)["model"], whole)
    (tmp_path / "run/checkpoints/step-000006.pt").unlink()
    shutil.rmtree(earlier)
    with pytest.raises(CheckpointError, match=r"^model.init: .*step-000006.pt: no such checkpoint"):
        resume_micro(tmp_path / "run")


def test_a_resumed_run_takes_no_other_start(earlier: Path, tmp_path: Path) -> None:
    run_micro(tmp_path / "run")
    flag = Layer("command line", {"model.init": str(earlier)}, {"model.init": "--init"})
    with pytest.raises(
        ConfigError, match=r"^--init: model.init: a resumed run keeps its settings \(model.init = None\)"
    ):
        resumed_settings(tmp_path / "run", flag, set_layer([]), micro_registry())


def test_clips_of_another_size_are_fitted_with_a_note_and_other_tokens_refused(earlier: Path, tmp_path: Path) -> None:
    _, said = run_micro(tmp_path / "run", f"model.init={earlier}", "data.frames=8")
    assert "positions recomputed for 16 tokens instead of 8" in _flat(said)
    with pytest.raises(CheckpointError, match=r"^model.init: .*tokens can't go from 2 x 8 x 8 to 2 x 4 x 4") as caught:
        run_micro(tmp_path / "other", f"model.init={earlier}", "model.patch=4")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "other").exists()


def test_a_start_without_decoder_needs_to_be_asked_for(earlier: Path, tmp_path: Path) -> None:
    write_weights(read_weights(earlier), tmp_path / "encoder.safetensors", "timm")
    init = f"model.init={tmp_path}/encoder.safetensors"
    with pytest.raises(CheckpointError, match=r"^model.init: .*has no decoder; --allow-partial starts one anew$"):
        run_micro(tmp_path / "run", init)
    assert not (tmp_path / "run").exists()
    result, said = run_micro(tmp_path / "run", init, "model.allow_partial=true", "train.steps=1")
    assert "the decoder starts anew" in said
    assert result.settings.config.model.allow_partial


def test_keys_that_do_not_fit_are_listed_in_groups(earlier: Path, tmp_path: Path) -> None:
    payload = saved(earlier, 6)
    payload["model"] = {name: t for name, t in payload["model"].items() if not name.endswith("v_bias")}
    torch.save(payload, tmp_path / "broken.pt")
    with pytest.raises(CheckpointError, match=r"^model.init: .*broken.pt: .*with --allow-partial\n") as caught:
        run_micro(tmp_path / "run", f"model.init={tmp_path}/broken.pt")
    assert str(caught.value).splitlines()[1:] == [
        "missing: encoder.blocks.0.attn.v_bias",
        "missing: decoder.blocks.0.attn.v_bias",
    ]
    _, said = run_micro(tmp_path / "run", f"model.init={tmp_path}/broken.pt", "model.allow_partial=true")
    assert "missing: encoder.blocks.0.attn.v_bias" in said


def test_a_part_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.allow_partial: there are no weights to take a part of; give --init"):
        micro_settings(tmp_path, "model.allow_partial=true")
