"""What is trained, how deep, and by which rule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from finetune.schema import Fraction, Section

Photos = Annotated[int, Field(ge=0)]
GroupNumber = Annotated[int, Field(ge=0)]


def _in_order(pair: tuple[int, int]) -> tuple[int, int]:
    if pair[0] > pair[1]:
        raise ValueError("give the lower depth first")
    return pair


class ModelConfig(Section):
    backbone: str = Field(description="any timm architecture; `finetune models` lists them")
    weights: str = Field(
        description="auto: an installed package, else timm's hub cache, else its hub; none: random; "
        "or a .safetensors, .pth or .ckpt file"
    )
    features: Literal["auto", "last", "stages", "all"] = Field(
        description="what the head sees, pooled: the last layer, every stage, or both; auto: validation chooses for "
        "freeze=head, else last"
    )
    drop_stages: Annotated[int, Field(ge=0)] = Field(
        description="stages of the backbone that are left out, from the top: resolutions of a CNN, blocks of a ViT"
    )
    drop_path: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="stochastic depth: chance that the deepest block is skipped, less for those below; 0: none"
    )


class FreezeConfig(Section):
    mode: Literal["auto", "head", "partial", "full", "gradual"] = Field(
        description="head: train the head on kept features; partial: some layers too; full: everything; gradual: the "
        "head first, then from the top down; auto: by the number of training photos"
    )
    top_groups: Annotated[float, Field(gt=0)] = Field(
        description="partial: depth groups that train, from the top; below 1 a fraction of them"
    )
    groups: Annotated[tuple[GroupNumber, GroupNumber], AfterValidator(_in_order)] | None = Field(
        description="partial: the first and last depth group that train, counted from the stem, 0; null: the top ones"
    )
    epochs_per_group: Annotated[float, Field(gt=0)] = Field(
        description="gradual: epochs after which the next depth group begins to train; 0.5: two groups an epoch"
    )
    head_below: Photos = Field(description="auto: fewer training photos than this train the head only")
    full_from: Photos = Field(description="auto: this many training photos or more train everything")


class ProbeConfig(Section):
    """freeze=head: a linear head on the features of a frozen backbone."""

    l2: list[Annotated[float, Field(gt=0)]] = Field(
        min_length=1, description="weights of the L2 penalty to try; validation chooses"
    )
    size_factors: list[Annotated[float, Field(gt=0)]] = Field(
        min_length=1, description="data.image_size=auto tries the backbone's own size times each of these"
    )


class ImbalanceConfig(Section):
    """Classes with many more training photos than others."""

    method: Literal["auto", "none", "class_weights", "balanced_sampler", "focal"] = Field(
        description="class_weights: every class counts the same in the loss; balanced_sampler: every class is drawn "
        "equally often; focal: photos that are right already count less; none: every photo counts the same; "
        "auto: class_weights from imbalance.auto_ratio on, else none"
    )
    focal_gamma: Annotated[float, Field(ge=0)] = Field(
        description="focal: how much less; 0 is cross-entropy (Lin et al. 2017: 2)"
    )
    auto_ratio: Annotated[float, Field(ge=1)] = Field(
        description="auto: least ratio of training photos, largest class to smallest, at which classes are weighted"
    )


class OptimizerConfig(Section):
    name: str = Field(
        description="any that timm names: sgd (with Nesterov momentum), momentum, rmsprop, adam, adamw, lion ..."
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(description="peak learning rate")
    weight_decay: Annotated[float, Field(ge=0)] = Field(description="decay of weights; biases and norms are spared")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="momentum, or the first beta of Adam and its like"
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        description="each depth group learns at this share of the rate of the one above it; 1: all at the same rate"
    )


class ScheduleConfig(Section):
    name: Literal["none", "step", "exponential", "cosine", "one_cycle"] = Field(
        description="how the learning rate goes after its rise: none: it stays; step: it falls at schedule.milestones; "
        "exponential, cosine, one_cycle: it falls to schedule.final"
    )
    warmup_fraction: Fraction = Field(
        description="share of all steps that rise to the peak, linearly; one_cycle: from a 25th of it, as a cosine"
    )
    final: Fraction = Field(description="exponential, cosine, one_cycle: rate at the end, as a share of the peak")
    milestones: list[Fraction] = Field(description="step: shares of all steps at which the learning rate falls")
    step_factor: Annotated[float, Field(gt=0, le=1)] = Field(description="step: to which share of itself it falls")

    @field_validator("final")
    @classmethod
    def _can_be_reached(cls, final: float, given: ValidationInfo) -> float:
        if given.data.get("name") == "exponential" and final == 0:
            raise ValueError("an exponential never comes to 0; give a small share, such as 0.01")
        return final


class TrainerConfig(Section):
    max_epochs: Annotated[int, Field(ge=1)] = Field(description="passes over the training photos, for partial and full")
    patience: Annotated[int, Field(ge=1)] = Field(description="epochs without a better validation loss before stopping")
    accelerator: Literal["auto", "cpu", "gpu"] = Field(description="where training runs; auto: a GPU if there is one")
    accumulate: Annotated[int, Field(ge=1)] = Field(
        description="batches whose gradients make one step, where one large batch would need too much memory"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="share of each label that is spread evenly over all classes, for partial, full and gradual"
    )
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
        description="gradients of a larger norm are scaled down to it; null: none are"
    )
    checkpoint_minutes: Annotated[float, Field(ge=0)] = Field(
        description="inside an epoch, checkpoints/last.ckpt is written this often; 0: after every step"
    )
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = Field(description="Lightning's name of the arithmetic")
