"""Settings of fine-tuning, testing, probing and feature extraction: trees of frozen models, as in `mgmae_cli.config`.

Layers: defaults < what the source recommends < what the checkpoint was trained on < recipe < flags < `--set`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from mgmae_cli.config import Beta, DataConfig, PlaceSection, ReadConfig, RunSection, Section, TrainConfig

Share = Annotated[float, Field(ge=0, le=1)]
LayerName = Annotated[str, BeforeValidator(str), Field(pattern=r"^(\d+|last)$")]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class FinetuneData(DataConfig):
    crop: Literal["multi_scale", "random_resized", "center", "none"] = "random_resized"


class ValConfig(Section):
    """The videos to test on, where they differ from the `data` section; frames and size are the same."""

    source: str = Field("auto", description="clip source; auto: that of data, or what the path is")
    path: Path | None = Field(None, description="list, folder or video to test on; default: data's, with split val")
    root: Path | None = Field(None, description="folder that a list's relative paths start from; default: data's")
    options: dict[str, Any] = Field(default_factory=dict, description="the source's options, over those of data")


class ReadViews(Section):
    """Which views of each video are read."""

    clips: int = Field(1, ge=1, description="places in time, spread over the video")
    crops: Literal[1, 3] = Field(1, description="1: the centre; 3: along the longer side")
    batch_size: int = Field(32, ge=1, description="views per forward pass")
    on_bad: Literal["error", "count"] = Field("error", description="an unreadable video: stop, or count it as wrong")


class ViewsConfig(ReadViews):
    """How videos are tested."""

    merge: Literal["prob", "logit"] = Field("prob", description="merge views by mean probability, or by mean score")


class AugmentConfig(Section):
    randaugment: str | None = Field(
        "rand-m7-n4-mstd0.5-inc1", description="RandAugment policy in timm's terms, or null"
    )
    erase: Share = Field(0.25, description="chance of erasing a box of each clip")
    mixup: float = Field(0.8, ge=0, description="alpha of mixup; 0: off")
    cutmix: float = Field(1.0, ge=0, description="alpha of cutmix; 0: off")
    mix_chance: Share = Field(1.0, description="chance that a batch is mixed")
    mix_switch: Share = Field(0.5, description="chance of cutmix where both are on")
    label_smoothing: float = Field(0.1, ge=0, lt=1)


class FinetuneModel(Section):
    """The classifier. Its encoder is the checkpoint's; `name` is checked, not chosen."""

    name: str | None = Field(None, description="the encoder's preset; null: the checkpoint's")
    allow_partial: bool = Field(False, description="start from what fits where the checkpoint's keys don't fit")
    tubelet: int | None = Field(None, ge=1, description="frames per token; another than the checkpoint's is fitted")
    patch: int | None = Field(None, ge=1, description="pixels per token side; another than the checkpoint's is fitted")
    drop_path: float = Field(0.1, ge=0, lt=1, description="stochastic depth of the last block, rising from 0")
    head_dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the head")
    head_scale: float = Field(0.001, gt=0, description="factor on the head's initial weights")
    checkpointing: bool = Field(False, description="recompute activations in the backward pass: less memory, more time")


class FinetuneTrain(TrainConfig):
    steps: int | None = Field(None, ge=1, description="optimiser steps, instead of epochs")
    epochs: float | None = Field(None, gt=0, description="passes over the videos; default 30, without steps")
    batch_size: int = Field(16, ge=1, description="clips per forward pass and device, repeated samples counted")
    base_lr: float = Field(5e-4, gt=0, description="learning rate per 256 clips a step")
    min_base_lr: float = Field(1e-6, ge=0, description="where the cosine ends, per 256 clips a step")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps with linearly rising learning rate")
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    layer_decay: float = Field(0.75, gt=0, le=1, description="learning rate's factor from a layer to the one below")
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="keep averaged weights with this decay, as 0.9999, and test those"
    )
    validate_every: float = Field(1.0, gt=0, description="epochs from one validation to the next; the last is always")


class FinetuneConfig(Section):
    """All settings of a fine-tuning run."""

    seed: Seed = Field(0, description="seeds the head, data order, crops and augmentation")
    checkpoint: Path = Field(description="what to start from: a checkpoint, or a run folder")
    baseline: Literal["none", "random"] = Field("none", description="random: train the same model from nothing")
    data: FinetuneData = FinetuneData()
    val: ValConfig = ValConfig()
    views: ViewsConfig = ViewsConfig()
    augment: AugmentConfig = AugmentConfig()
    model: FinetuneModel = FinetuneModel()
    train: FinetuneTrain = FinetuneTrain()
    run: RunSection = RunSection()


class EvaluateConfig(Section):
    """All settings of a test."""

    checkpoint: Path = Field(description="a checkpoint of mgmae finetune, or its run folder")
    weights: Literal["auto", "model", "ema"] = Field("auto", description="auto: averaged ones where there are some")
    data: ReadConfig = ReadConfig()
    views: ViewsConfig = ViewsConfig()
    run: PlaceSection = PlaceSection()


class ProbeSettings(Section):
    kind: Literal["linear", "knn", "attentive"] = Field("linear", description="what is put on the frozen features")
    layers: tuple[LayerName, ...] = Field(("last",), min_length=1, description="blocks 1, 2, ...; 0; last; judged each")
    lr: tuple[float, ...] | None = Field(None, min_length=1, description="learning rates to choose from")
    weight_decay: tuple[float, ...] | None = Field(None, min_length=1, description="weight decays to choose from")
    epochs: int | None = Field(None, ge=1, description="passes over the features; default 100, attentive 20")
    batch_size: int = Field(64, ge=1, description="clips a step of the probe's training")
    holdout: float = Field(0.25, gt=0, lt=1, description="share of the training videos that settings are chosen on")
    k: int = Field(20, ge=1, description="knn: neighbours")
    temperature: float = Field(0.07, gt=0, description="knn: votes count exp(similarity / temperature)")
    cache: Path | None = Field(None, description="folder of extracted features; default: the user's cache folder")

    @model_validator(mode="after")
    def _fits_its_kind(self) -> ProbeSettings:
        swept = [name for name in ("lr", "weight_decay", "epochs") if getattr(self, name) is not None]
        if self.kind == "knn" and swept:
            raise ValueError(f"knn has no {swept[0]}: it is not trained; drop it, or choose another kind")
        for name in ("k", "temperature"):
            if self.kind != "knn" and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{self.kind} has no {name}; drop it, or choose --kind knn")
        if any(rate <= 0 for rate in self.lr or ()) or any(decay < 0 for decay in self.weight_decay or ()):
            raise ValueError("lr must be above 0, and weight_decay 0 or above")
        return self


class ProbeConfig(Section):
    """All settings of a probe."""

    seed: Seed = Field(0, description="seeds heads, inner split and the random baseline")
    checkpoint: Path = Field(description="a checkpoint, or a run folder")
    baseline: Literal["none", "random", "pixels"] = Field("none", description="judge a baseline of the same geometry")
    data: ReadConfig = ReadConfig()
    val: ValConfig = ValConfig()
    probe: ProbeSettings = ProbeSettings()
    views: ReadViews = ReadViews()
    run: PlaceSection = PlaceSection()


class FeatureSettings(Section):
    form: Literal["pooled", "dense"] = Field("pooled", description="one row a video, or one a token")
    layers: tuple[LayerName, ...] = Field(("last",), min_length=1, description="blocks 1, 2, ...; 0; last")
    format: Literal["npy", "safetensors"] = "npy"
    dtype: Literal["float32", "float16"] = "float32"


class FeaturesConfig(Section):
    """All settings of feature extraction."""

    seed: Seed = Field(0, description="seeds the random baseline")
    checkpoint: Path = Field(description="a checkpoint, or a run folder")
    baseline: Literal["none", "random", "pixels"] = "none"
    data: ReadConfig = ReadConfig()
    features: FeatureSettings = FeatureSettings()
    views: ReadViews = ReadViews()
    run: PlaceSection = PlaceSection()
