"""The model card: a README.md beside an exported folder, from the run's settings and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mgmae_cli.model.weights import KIND_WORDS, Weights
from mgmae_cli.yaml_files import dump_yaml

LOADING = {
    "pretrain": "VideoMAEForPreTraining",
    "classifier": "VideoMAEForVideoClassification",
    "encoder": "VideoMAEModel",
}


def model_card(weights: Weights, notes: Sequence[str], figures: Mapping[str, Any]) -> str:
    """Return the card's text in Markdown, with the YAML header that model hubs read.

    Args:
        notes: what the export changed.
        figures: measured numbers, such as the loss at the end.
    """
    grid, size = weights.geometry.grid, weights.geometry.size
    header = ["library_name: transformers", "tags:", "- video", "- videomae", "- masked-autoencoder"]
    if _is_motion(weights.config):
        header.append("- mgmae")
    if weights.kind == "classifier":
        header.append("pipeline_tag: video-classification")
    rows = [
        ("encoder", f"width {size.width}, {size.depth} blocks, {size.heads} heads"),
        ("clips", f"{grid.frames} frames of {grid.height} x {grid.width} pixels"),
        ("tokens", f"{grid.tokens}, each {grid.tubelet} frames x {grid.patch} x {grid.patch} pixels"),
    ]
    if weights.kind == "pretrain":
        rows.insert(
            1, ("decoder", f"width {size.decoder_width}, {size.decoder_depth} blocks, {size.decoder_heads} heads")
        )
    if weights.kind == "classifier":
        rows.append(("classes", str(weights.geometry.num_classes)))
    parts = [
        "---\n" + "\n".join(header) + "\n---",
        f"# VideoMAE {KIND_WORDS[weights.kind]}, width {size.width}",
        f"Exported by mgmae from: {weights.origin}.",
        _table(("part", "size"), rows),
        *_training(weights),
        *_measured(figures),
        "## Use",
        f"```python\nfrom transformers import {LOADING[weights.kind]}, VideoMAEImageProcessor\n\n"
        f'model = {LOADING[weights.kind]}.from_pretrained("THIS_FOLDER")\n'
        f'processor = VideoMAEImageProcessor.from_pretrained("THIS_FOLDER")\n```',
    ]
    remarks = [*weights.notes, *notes]
    if remarks:
        parts += ["## Notes on the conversion", "\n".join(f"- {_sentence(note)}" for note in remarks)]
    return "\n\n".join(parts) + "\n"


def run_figures(checkpoint: Path) -> dict[str, Any]:
    """Return the last figures that the run of a checkpoint logged, or nothing where there is no such run."""
    run = checkpoint if checkpoint.is_dir() else checkpoint.parent.parent
    metrics = run / "metrics.jsonl"
    if not metrics.is_file():
        return {}
    figures: dict[str, Any] = {}
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # a line cut off by a crash
        if isinstance(record, dict):
            figures |= record
    return figures


def _training(weights: Weights) -> list[str]:
    """Describe the run: the masking strategy and the data in words, then every setting."""
    config = weights.config
    if not config:
        return ["## Training", "The checkpoint says nothing about its training."]
    rows = []
    mask, flow, data = (dict(config.get(name) or {}) for name in ("mask", "flow", "data"))
    if config.get("checkpoint"):
        rows.append(("fine-tuned from", str(config["checkpoint"])))
    if mask:
        rows.append(("masking strategy", f"{mask.get('name')}, {mask.get('ratio')} of the tokens masked"))
        options = dict(mask.get("options") or {})
        rows += [(f"masking: {name}", str(value)) for name, value in options.items() if value is not None]
    if _is_motion(config) and flow:
        rows.append(("optical flow", str(flow.get("name"))))
    if data:
        rows.append(("data", str(data.get("path") or data.get("source"))))
        rows.append(("sampling", f"{data.get('sampling')}, stride {data.get('stride')}, crop {data.get('crop')}"))
    if weights.step is not None:
        rows.append(("optimiser steps", str(weights.step)))
    return [
        "## Training",
        _table(("what", "how"), rows),
        f"<details><summary>The recipe, all settings</summary>\n\n```yaml\n{dump_yaml(dict(config))}```\n\n</details>",
    ]


def _measured(figures: Mapping[str, Any]) -> list[str]:
    numbers = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    if not numbers:
        return []
    return ["## Figures", _table(("last logged", "value"), [(name, f"{value:g}") for name, value in numbers.items()])]


def _is_motion(config: Mapping[str, Any] | None) -> bool:
    mask = (config or {}).get("mask")
    return isinstance(mask, Mapping) and mask.get("name") == "motion"


def _sentence(note: str) -> str:
    return note[0].upper() + note[1:] + "."


def _table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {left} | {_cell(right)} |" for left, right in rows)]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
