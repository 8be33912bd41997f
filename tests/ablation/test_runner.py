"""Ablations as their user meets them: killed and started again, with a cell that fails, in part, and their report."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from mgmae_cli.ablation.run import Options, run_ablation
from mgmae_cli.ablation.state import computed
from mgmae_cli.errors import ConfigError, RunError

TIMES = ("train_seconds", "clips_per_s", "data_wait")
# Pixel maps, since on so few patches a gaussian map that hardly moves gives the very masks of tube.
RECIPE = """question: Which masks & why?
base:
  mask: {ratio: 0.75}
  flow: {options: {scale: 1}}
  data: {size: 16, frames: 4, options: {clips: 32}}
  model: {name: tiny, decoder_depth: 1}
  train: {steps: STEPS, batch_size: 2}
  run: {log_every: 1, device: cpu, save_every: 4}
sweep: {mask: {tube: {mask.name: tube}, motion: {mask.name: motion, mask.options.init: pixel}}}
seeds: 2
evaluate: {loss: , leakage: {clips: 2}, reconstruction: {clips: 2}}
"""


def write(tmp_path: Path, steps: int = 4, text: str = RECIPE) -> Path:
    path = tmp_path / "which.yaml"
    path.write_text(text.replace("STEPS", str(steps)))
    return path


def figures(out: Path) -> list[dict[str, str]]:
    with (out / "table.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["figure"] not in TIMES]


def start(recipe: Path, out: Path) -> subprocess.Popen[str]:
    # two at once have one thread each: two threads wait for each other where other tests keep the cores busy
    command = [sys.executable, "-m", "mgmae_cli", "ablate", str(recipe), "--out", str(out), "--jobs", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    results = run_ablation(write(folder, 40), Options(out=folder / "out", jobs=2), Console(quiet=True))
    assert results is not None
    return folder / "out"


def test_an_ablation_killed_twice_ends_with_the_same_table_as_one_left_alone(undisturbed: Path, tmp_path: Path) -> None:
    recipe, out = write(tmp_path, 40), tmp_path / "out"
    first = out / "cells" / "tube" / "seed-0"
    for what in (first / "run" / "checkpoints" / "step-000020.pt", out / "cells" / "motion" / "seed-0" / "figures"):
        process = start(recipe, out)
        until(lambda what=what, process=process: what.exists() or process.poll() is not None)
        process.kill()
        process.communicate()
        assert not (out / "report.html").exists()
    process = start(recipe, out)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert figures(out) == figures(undisturbed)
    assert "resuming from" in (first / "log.txt").read_text()


def test_a_stopped_ablation_saves_says_so_and_goes_on(tmp_path: Path) -> None:
    recipe, out = write(tmp_path, 2000), tmp_path / "out"
    process = start(recipe, out)
    until(lambda: (out / "cells" / "tube" / "seed-0" / "run" / "checkpoints").exists())
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "0 of 4 runs are done; the same command goes on" in said
    state = json.loads((out / "cells" / "tube" / "seed-0" / "state.json").read_text())
    assert state["status"] == "waiting"


def test_runs_with_loader_processes_end_with_the_figures_of_runs_without(undisturbed: Path, tmp_path: Path) -> None:
    recipe = write(tmp_path, 40, RECIPE.replace("data: {", "data: {workers: 1, "))
    process = start(recipe, tmp_path / "out")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert figures(tmp_path / "out") == figures(undisturbed)


def test_a_failed_cell_is_shown_with_its_error_and_the_others_go_on(tmp_path: Path) -> None:
    text = RECIPE.replace(
        "motion: {mask.name: motion, mask.options.init: pixel}", "wild: {mask.name: tube, train.base_lr: 1.0e+30}"
    )
    recipe, out = write(tmp_path, 4, text), tmp_path / "out"
    with pytest.raises(RunError, match="2 of 4 runs failed") as caught:
        run_ablation(recipe, Options(out=out, jobs=2), Console(quiet=True))
    assert "wild, seed 1:" in str(caught.value)
    rows = {row["cell"]: row for row in json.loads((out / "results.json").read_text())["cells"]}
    assert rows["tube"]["done"] == [0, 1]
    assert "the loss of step" in rows["wild"]["failed"]["0"]
    assert "the loss of step" in (out / "report.html").read_text()


def test_only_does_the_cells_that_are_named_and_more_seeds_add_to_what_is_done(tmp_path: Path) -> None:
    recipe, out = write(tmp_path, 2), tmp_path / "out"
    run_ablation(recipe, Options(out=out, only=["tube"], seeds=1, jobs=2), Console(quiet=True))
    done = [path.parent.parent.name for path in out.glob("cells/*/seed-*/state.json")]
    assert done == ["tube"]
    before = (out / "cells/tube/seed-0/state.json").read_text()
    results = run_ablation(recipe, Options(out=out, seeds=2, jobs=2), Console(quiet=True))
    assert results is not None
    assert [row.done for row in results.rows] == [[0, 1], [0, 1]]
    assert (out / "cells/tube/seed-0/state.json").read_text() == before


def test_a_folder_with_runs_of_other_settings_is_refused_with_the_setting(undisturbed: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"train\.steps was 40 and is now 4"):
        run_ablation(write(tmp_path, 4), Options(out=undisturbed), Console(quiet=True))


def test_a_cell_of_no_steps_stands_beside_the_others_and_has_no_figures_of_training(tmp_path: Path) -> None:
    text = RECIPE.replace("tube: {mask.name: tube}", "untrained: {train.steps: 0}, tube: {mask.name: tube}")
    recipe, out = write(tmp_path, 2, text), tmp_path / "out"
    results = run_ablation(recipe, Options(out=out, seeds=1, only=["tube", "untrained"], jobs=2), Console(quiet=True))
    assert results is not None
    untrained, tube = (set(row.entries) for row in results.rows[:2])
    assert untrained == {"unseen_loss", "tube_loss"}
    assert untrained | {"loss", "leak"} < tube
    assert (out / "report.html").exists()


def test_runs_are_taken_from_another_ablation_where_all_that_is_computed_is_the_same(
    undisturbed: Path, tmp_path: Path
) -> None:
    text = RECIPE.replace("{mask.name: tube}", "{mask.name: tube, mask.ratio: 0.75}").replace(
        "init: pixel", "init: token"
    )
    recipe, out = write(tmp_path, 40, text.replace(", reconstruction: {clips: 2}", "")), tmp_path / "out"
    options = Options(out=out, seeds=1, only=["tube"], reuse=[undisturbed.parent])
    (out / "cells/tube/seed-0/run/checkpoints").mkdir(parents=True)  # as a killed run leaves it
    run_ablation(recipe, options, Console(quiet=True))
    state = json.loads((out / "cells/tube/seed-0/state.json").read_text())
    assert state["taken_from"] == str(undisturbed / "cells/tube/seed-0")
    names = {path.name for path in (out / "cells/tube/seed-0/figures").iterdir()}
    assert names == {"leakage.json", "loss.json"}
    run_ablation(write(tmp_path, 2), Options(out=tmp_path / "other", reuse=[undisturbed]), Console(quiet=True))
    assert not any("taken_from" in path.read_text() for path in tmp_path.glob("other/cells/*/*/state.json"))


def test_where_decoded_frames_are_kept_does_not_tell_runs_apart() -> None:
    config = {"data": {"options": {"decoder": "av", "cache": "frames", "cache_gb": 5.0}}}
    assert computed({"config": config, "evaluate": {}}) == {"data.options.decoder": "av"}


def test_a_folder_without_ablations_to_reuse_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no ablation"):
        run_ablation(write(tmp_path), Options(out=tmp_path / "out", reuse=[tmp_path / "empty"]), Console(quiet=True))


def test_the_page_holds_everything_in_one_file_and_loads_nothing(undisturbed: Path) -> None:
    text = (undisturbed / "report.html").read_text()
    assert not re.search(r"@import|url\(", text)

    class Links(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.sources: list[str] = []

        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            assert tag not in ("script", "link", "iframe", "object", "embed", "base")
            loading = ("src", "href", "srcset", "data", "poster", "background", "action")
            self.sources += [value or "" for name, value in attributes if name in loading]

    parser = Links()
    parser.feed(text)
    assert len(parser.sources) == 3  # figures, curves, masks
    assert all(source.startswith("data:image/png;base64,") for source in parser.sources)
    assert "Which masks &amp; why?" in text
    for expected in (
        "4 runs done",
        "last_run_started",
        "of the clips of the paper",
        "mask.name: tube",
        "torch",
        "95 % confidence",
    ):
        assert expected in text
    for name in ("figures.png", "curves.png", "masks.png"):
        assert (undisturbed / name).read_bytes().startswith(b"\x89PNG")


def test_the_table_has_means_deviations_and_paired_differences(undisturbed: Path) -> None:
    rows = {(row["cell"], row["figure"]): row for row in figures(undisturbed)}
    row, first = rows["motion", "loss"], rows["tube", "loss"]
    mine, theirs = ([float(part.split(":")[1]) for part in r["values"].split()] for r in (row, first))
    assert float(row["mean"]) == pytest.approx(sum(mine) / 2)
    assert float(row["difference"]) == pytest.approx(sum(mine) / 2 - sum(theirs) / 2)
    assert float(row["low"]) < float(row["difference"]) < float(row["high"])
    assert first["difference"] == ""


def test_a_dry_run_shows_cells_runs_and_time_and_writes_nothing(tmp_path: Path) -> None:
    console = Console(record=True, width=140, quiet=False, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    assert run_ablation(write(tmp_path), Options(out=tmp_path / "out", dry_run=True), console) is None
    said = console.export_text()
    console.file.close()
    assert "2 cells, 4 of 4 runs to do" in said
    assert "motion" in said
    assert not (tmp_path / "out").exists()


def test_two_ablations_in_one_folder_are_refused(tmp_path: Path) -> None:
    recipe, out = write(tmp_path, 2000), tmp_path / "out"
    process = start(recipe, out)
    until(lambda: (out / "recipe.yaml").exists())
    with pytest.raises(RunError, match="another mgmae ablate works in this folder"):
        run_ablation(recipe, Options(out=out), Console(quiet=True))
    process.kill()
    process.communicate()


def test_an_unknown_launcher_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--launcher slrum: unknown \(did you mean 'slurm'\?\)"):
        run_ablation(write(tmp_path), Options(launcher="slrum"), Console(quiet=True))
