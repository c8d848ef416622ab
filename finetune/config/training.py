"""What is trained, how deep, and by which rule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from finetune.config.rates import is_per_photos
from finetune.config.tables import ByPhotos
from finetune.schema import Fraction, Place, Section

# Keys that change nothing about a run: where it lies, how it is watched, and in which words it was asked for.
NO_OTHER_RUN = ("output", "logger", "command")

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
    features: Literal["auto", "last", "stages", "all", "blocks"] = Field(
        description="what the head sees, pooled: the last layer, every stage, both, or every block; auto: validation "
        "chooses for freeze=head, lp_ft and auto, else last"
    )
    drop_stages: Annotated[int, Field(ge=0)] = Field(
        description="stages of the backbone that are left out, from the top: resolutions of a CNN, blocks of a ViT"
    )
    drop_path: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="stochastic depth: chance that the deepest block is skipped, less for those below; 0: none"
    )

    def weights_of(self, backbone: str) -> str:
        """Return where a backbone's weights come from; a file is that of the configured one."""
        return self.weights if backbone == self.backbone or self.weights == "none" else "auto"


class FreezeConfig(Section):
    mode: Literal["auto", "head", "partial", "full", "gradual", "lp_ft"] = Field(
        description="head: train the head on kept features; partial: some layers too; full: everything; gradual: the "
        "head first, then from the top down; lp_ft: the head, then everything from there; auto: the head, then layers "
        "from there if there are many photos or a time limit, and the better of the two"
    )
    top_groups: Annotated[float, Field(gt=0)] = Field(
        description="partial: depth groups that train, from the top; below 1 a fraction of them"
    )

    @field_validator("top_groups")
    @classmethod
    def _is_a_fraction_or_a_count(cls, top_groups: float) -> float:
        if top_groups > 1 and top_groups != round(top_groups):
            raise ValueError("give a fraction below 1, or a whole number of groups")
        return top_groups

    groups: Annotated[tuple[GroupNumber, GroupNumber], AfterValidator(_in_order)] | None = Field(
        description="partial: the first and last depth group that train, counted from the stem, 0; null: the top ones"
    )
    epochs_per_group: Annotated[float, Field(gt=0)] = Field(
        description="gradual: epochs after which the next depth group begins to train; 0.5: two groups an epoch"
    )
    head_epochs: Annotated[int, Field(ge=0)] = Field(
        description="partial, full, gradual: epochs of the head alone before any depth group trains; the learning rate "
        "goes through its schedule once in them and once after them"
    )
    statistics: Literal["update", "keep"] = Field(
        description="batch norm of layers that train: update: its statistics follow the photos; keep: those of "
        "pretraining stay, so that a head that was fitted to them goes on seeing what it knows"
    )
    head_below: Photos = Field(
        description="auto without a time limit: fewer training photos than this train the head only"
    )
    full_from: Photos = Field(
        description="auto without a time limit: this many training photos or more train everything, fewer the top"
    )


class ProbeConfig(Section):
    """freeze=head: a linear head on the features of a frozen backbone."""

    l2: list[Annotated[float, Field(gt=0)]] = Field(min_length=1, description="weights of the L2 penalty to try")
    size_factors: list[Annotated[float, Field(gt=0)]] = Field(
        min_length=1, description="data.image_size=auto tries the backbone's own size times each of these"
    )
    sample: Annotated[int, Field(ge=1)] = Field(
        description="photos on which every size and backbone is tried first, where there are several; what is behind "
        "there by more than a standard error does not see the others. As many again where val/ is named; at least 4 a "
        "class"
    )
    backbones: list[str] = Field(description="further backbones to try beside model.backbone, cheapest first")
    views: Annotated[int, Field(ge=0)] = Field(
        description="distorted copies of each training photo, by augment=, that the head learns from beside the photo"
    )
    cache: Literal["auto"] | Place = Field(
        description="folder where features are kept for other runs; auto: the user's cache folder"
    )
    cache_gb: Annotated[float, Field(ge=0)] = Field(
        description="size that folder is brought down to before a run, the longest unused going first"
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
    learning_rate: Literal["auto"] | Annotated[float, Field(gt=0)] = Field(
        description="peak learning rate; '0.003 per 512' is 0.003 for steps of 512 photos, and in proportion for those "
        "of data.batch_size x trainer.accumulate; auto: where the training loss falls fastest in a search of "
        "trainer.search_steps steps, drawn in learning_rate.png"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        description="decay of weights; biases and norms are spared. With sgd, momentum, rmsprop and adam it is the L2 "
        "penalty weight_decay/2 x sum of w^2; with adamw and its like each step shrinks weights apart from the gradient"
    )
    l1: Annotated[float, Field(ge=0)] = Field(
        description="L1 penalty l1 x sum of |w| of the same weights, for partial, full and gradual: after each step "
        "they move by learning rate x l1 towards 0 and stop there (proximal, ISTA), so that many are exactly 0; "
        "0: none. freeze=head has the L2 penalties of probe.l2 and refuses it"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="momentum, or the first beta of Adam and its like"
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        description="each depth group learns at this share of the rate of the one above it; 1: all at the same rate"
    )
    stem_rate: Annotated[float, Field(gt=0, le=1)] | None = Field(
        description="in place of layer_decay: the stem learns at this share of the head's rate, those between evenly "
        "spaced in the logarithm, whatever the number of depth groups; null: by layer_decay"
    )

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _is_a_number_by_now(cls, rate: object) -> object:
        if is_per_photos(rate):
            raise ValueError("in proportion to the photos of a step it needs data.batch_size as a number above 1")
        return rate

    @field_validator("stem_rate")
    @classmethod
    def _is_the_only_rule(cls, share: float | None, given: ValidationInfo) -> float | None:
        decay = given.data.get("layer_decay", 1)
        if share is not None and decay != 1:
            raise ValueError(f"optimizer.layer_decay={decay:g} sets the rates too; leave one out, or stem_rate=null")
        return share

    @property
    def peak(self) -> float:
        """The learning rate as a number, which has taken the place of `auto` where training begins."""
        if self.learning_rate == "auto":
            raise TypeError("optimizer.learning_rate=auto has not been settled")
        return self.learning_rate

    def at_rate(self, learning_rate: float) -> OptimizerConfig:
        """Return the same but for the learning rate."""
        return self.model_copy(update={"learning_rate": learning_rate})


class ScheduleConfig(Section):
    name: Literal["none", "step", "exponential", "cosine", "one_cycle"] = Field(
        description="how the learning rate goes after its rise: none: it stays; step: it falls at schedule.milestones; "
        "exponential, cosine, one_cycle: it falls to schedule.final"
    )
    warmup_fraction: Fraction = Field(
        description="share of all steps that rise to the peak, linearly; one_cycle: from a 25th of it, as a cosine"
    )
    warmup_max_steps: Annotated[int, Field(ge=0)] | None = Field(
        description="most steps of that rise, however long the training; null: as many as the share makes"
    )
    after_head: Annotated[float, Field(gt=0)] = Field(
        description="freeze.head_epochs: peak of the learning rate after them, as a share of the peak in them"
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


class LoggerConfig(Section):
    """Where a run can be followed, beside metrics.csv in its folder."""

    tensorboard: bool = Field(description="event files in the run folder")
    mlflow: bool = Field(description="at MLFLOW_TRACKING_URI, or mlflow.db in the run folder")
    wandb: bool = Field(description="online where WANDB_API_KEY is set, or files in the run folder")
    project: str = Field(min_length=1, description="MLflow's experiment, W&B's project; the run has its folder's name")


class TrainerConfig(Section):
    max_epochs: Annotated[int, Field(ge=1)] = Field(description="passes over the training photos, for partial and full")
    max_steps: ByPhotos[Annotated[int, Field(ge=1)]] | None = Field(
        description="most optimizer steps, rounded up to whole epochs; max_epochs holds too, the smaller wins. A table "
        "goes by the number of training photos: {0: 500, 20000: 10000}; null: max_epochs alone"
    )
    patience: Annotated[int, Field(ge=1)] | None = Field(
        description="epochs without a better one on the validation photos before stopping; null: never stop early"
    )
    search_steps: Annotated[int, Field(ge=20)] = Field(
        description="optimizer.learning_rate=auto: most steps of the search; it ends where training diverges"
    )
    accelerator: Literal["auto", "cpu", "gpu"] = Field(description="where training runs; auto: a GPU if there is one")
    devices: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        description="processes that train together on this machine, each on a GPU of its own or on the CPU; auto: all "
        "GPUs, one process on a CPU, and under torchrun or srun as many as it started"
    )
    num_nodes: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        description="machines that train together; auto: as many as torchrun or srun started, else one"
    )
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        description="several processes: ddp: the whole network in each; fsdp: divided among them; auto: ddp"
    )
    accumulate: Annotated[int, Field(ge=1)] = Field(
        description="batches whose gradients make one step, where one large batch would need too much memory"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="share of each label that is spread evenly over all classes, for partial, full and gradual"
    )
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        description="partial, full, gradual: validate and keep a moving average of the weights, of which each step "
        "leaves this share, less in the first steps; 0.999 to 0.9999; null: the weights themselves"
    )
    soup: Annotated[int, Field(ge=1)] = Field(
        description="partial, full, gradual: the best epoch's weights are averaged with those of up to this many less "
        "one other good epochs, each only if validation does not get worse (greedy soup); 1: the best epoch alone"
    )
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
        description="gradients of a larger norm are scaled down to it; null: none are"
    )
    checkpoint_minutes: Annotated[float, Field(ge=0)] = Field(
        description="inside an epoch, checkpoints/last.ckpt is written this often; 0: after every step"
    )
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = Field(
        description="Lightning's name of the arithmetic: 32-true; bf16-mixed or, on a GPU, 16-mixed: matrix products "
        "and convolutions in 16 bits, weights in 32"
    )
    compile: bool = Field(
        description="partial, full, gradual: torch.compile for the network while it trains; needs a C++ compiler, and "
        "minutes at the start and wherever other layers begin to train"
    )
    gradient_checkpointing: bool = Field(
        description="partial, full, gradual: compute activations again in the backward pass and do not keep them: less "
        "memory, longer steps, the same gradients"
    )
