"""Steps: equal losses of ours and transformers', what is in the table, and memory in fresh processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from mgmae_cli.bench import memory, step
from mgmae_cli.bench.measure import Figure
from mgmae_cli.bench.options import Bench
from mgmae_cli.bench.step import StepSpec, make_model, make_step, run_step, step_specs
from mgmae_cli.grid import ClipGrid

SPEC = StepSpec("tiny", "fp32", ClipGrid(4, 64, 96), 0.75, batch_size=3, device="cpu")


def loss_and_gradients(spec: StepSpec) -> tuple[float, dict[str, torch.Tensor]]:
    """Do a step; return its loss, and the gradients that it had when it was done."""
    model = make_model(spec)
    seen: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: seen.__setitem__(name, p.grad.clone()))
    loss = float(make_step(spec, model)(0))
    assert all(parameter.grad is None for parameter in model.parameters()), "a step leaves gradients behind"
    return loss, seen


def test_transformers_model_with_our_weights_has_our_loss_and_gradients() -> None:
    pytest.importorskip("transformers")
    loss, ours = loss_and_gradients(SPEC)
    their_loss, theirs = loss_and_gradients(replace(SPEC, peer=True))
    assert loss == pytest.approx(their_loss, rel=1e-5)
    torch.testing.assert_close(
        ours["encoder.patch_embed.proj.weight"],
        theirs["videomae.embeddings.patch_embeddings.projection.weight"],
        rtol=1e-3,
        atol=1e-7,
    )
    torch.testing.assert_close(ours["decoder.head.weight"], theirs["decoder.head.weight"], rtol=1e-3, atol=1e-7)


def test_a_step_is_the_same_each_time_and_in_each_variant_that_should_be() -> None:
    losses = {}
    for spec in (SPEC, replace(SPEC, checkpointing=True), replace(SPEC, half=True), replace(SPEC, precision="bf16")):
        run = make_step(spec, make_model(spec))
        losses[spec] = float(run(0))
        assert float(run(1)) == losses[spec]
    plain, again, half, bf16 = losses.values()
    assert plain == again
    assert half != plain
    assert bf16 == pytest.approx(plain, rel=0.02)


def test_the_table_has_all_competitors_with_shares_of_the_matrix_rate(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr(
        step, "peak_memory", lambda specs, repeats, say: {s.name: Figure.of([1.0], "GB") for s in specs}
    )
    (table,) = run_step(make_bench("step", against=("hf",), checkpointing=True))
    rows = {row.name: row.figures for row in table.rows}
    assert list(rows) == [
        "matrix product fp32",
        "matrix product bf16",
        *(
            f"tiny {precision} {what}"
            for precision in ("fp32", "bf16")
            for what in ("mgmae", "mgmae, half decoded", "mgmae, checkpointing", "hf")
        ),
    ]
    assert rows["matrix product fp32"]["rate"].unit == "GFLOP/s"
    for name in list(rows)[2:]:
        peer = {"x hf"} if "hf" not in name else set()
        assert set(rows[name]) == {"a clip", "of the matrix rate", "operations a clip", "memory"} | peer
        assert len(rows[name]["a clip"].samples) == 2
    assert rows["tiny fp32 mgmae, half decoded"]["x hf"].unit == "x"


def test_the_share_of_the_matrix_rate_is_the_ratio_of_operations_per_second() -> None:
    timings = {
        "tiny fp32 mgmae": step.Timings(0.0, (2.0, 4.0), work=3),
        "matrix product fp32": step.Timings(0.0, (1.0, 2.0), work=1e9),
    }
    share = step._figures(SPEC, timings, {})["of the matrix rate"]
    assert share.median == pytest.approx(100 * (3 * SPEC.operations / 2.0) / (1e9 / 1.0))


def test_a_grid_with_odd_sides_has_no_half_decoded_step(make_bench: Callable[..., Bench]) -> None:
    assert {spec.half for spec in step_specs(make_bench("step", size=48))} == {False}
    assert {spec.half for spec in step_specs(make_bench("step", size=64))} == {False, True}


def test_a_compiled_step_is_a_competitor_of_its_own(make_bench: Callable[..., Bench]) -> None:
    names = [spec.name for spec in step_specs(make_bench("step", compile=True, precisions=("fp32",)))]
    assert names == ["tiny fp32 mgmae", "tiny fp32 mgmae, half decoded", "tiny fp32 mgmae, compiled"]


def test_memory_is_that_of_a_fresh_process() -> None:
    """Something large that this process holds is not counted."""
    ballast = bytearray(b"x") * 600_000_000
    spec = StepSpec("tiny", "fp32", ClipGrid(4, 32, 32), 0.5, batch_size=1, device="cpu")
    found = memory.peak_memory([spec], repeats=1, say=lambda text: None)
    assert 0 < found[spec.name].median < 0.3
    assert found[spec.name].unit == "GB"
    del ballast


def test_processes_that_measure_memory_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    class Now:
        def __init__(self, *_: object, **__: object) -> None: ...

        def __enter__(self) -> Now:
            return self

        def __exit__(self, *_: object) -> None: ...

        def submit(self, function: object, spec: StepSpec, threads: int) -> Now:
            return self

        def result(self) -> int:
            return 2_000_000_000

    monkeypatch.setattr(memory, "ProcessPoolExecutor", Now)
    said: list[str] = []
    found = memory.peak_memory([SPEC, replace(SPEC, half=True)], 2, said.append)
    assert [text.rpartition(": ")[2] for text in said] == ["tiny fp32 mgmae", "tiny fp32 mgmae, half decoded"] * 2
    assert found["tiny fp32 mgmae"].samples == (2.0, 2.0)
