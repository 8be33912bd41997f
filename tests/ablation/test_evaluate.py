"""Every evaluation of an ablation, on one tiny run; and a run that goes on with what is left."""

from __future__ import annotations

import math
from pathlib import Path

from mgmae_cli.ablation.evaluate import METRICS
from mgmae_cli.ablation.grid import expand
from mgmae_cli.ablation.recipe import load_ablation
from mgmae_cli.ablation.state import plan_runs, write_spec
from mgmae_cli.ablation.work import do_run

FEW = "data.options.clips: 24, val.options.clips: 12"
RECIPE = f"""question: Which?
base:
  data: {{source: shapes, size: 32, frames: 4, workers: 0, options: {{clips: 32}}}}
  model: {{name: tiny, patch: 8, decoder_depth: 1}}
  train: {{steps: 2, batch_size: 2}}
  run: {{log_every: 1, device: cpu}}
sweep: {{mask.name: [motion]}}
seeds: 1
evaluate:
  loss:
  leakage: {{clips: 2}}
  reconstruction: {{clips: 2}}
  linear: {{{FEW}, probe.epochs: 1}}
  knn: {{{FEW}}}
  attentive: {{{FEW}, probe.epochs: 1}}
  finetune: {{{FEW}, train.epochs: 1, train.batch_size: 4}}
"""


def test_every_evaluation_measures_a_run_and_one_whose_figures_are_there_is_not_done_again(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    ablation = load_ablation(tmp_path / "r.yaml")
    cells = expand(ablation)
    run = plan_runs(tmp_path, cells, ablation.seeds)[0]
    write_spec(run, cells[0], ablation.evaluate, keep_checkpoints=True)
    assert do_run(run.folder), run.state()
    figures = run.figures()
    assert set(METRICS) <= set(figures)
    assert all(math.isfinite(value) for value in figures.values())
    assert all(0 <= figures[name] <= 100 for name in ("linear", "knn", "attentive", "finetune"))
    done = {path: path.stat().st_mtime_ns for path in (run.folder / "figures").iterdir()}
    (run.folder / "figures" / "knn.json").unlink()
    run.set_state("waiting")
    assert do_run(run.folder), run.state()
    again = {path: path.stat().st_mtime_ns for path in (run.folder / "figures").iterdir()}
    assert [path.stem for path in done if done[path] != again[path]] == ["knn"]
    assert run.figures() == figures
