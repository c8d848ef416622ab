"""Keys that have no part in the way that was chosen: what a person types and cannot act is told of.

What a recipe or another option of a group sets is not asked about: it belongs to a whole that was chosen as one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from finetune.config.commands import TrainConfig

# What a training may consist of: heads on kept features, layers of the backbone, among them only some or one after the
# other; counting: the number of photos decides which.
Part = Literal["search", "layers", "partial", "gradual", "counting"]
Parts = frozenset[Part]

WITH_FREEZE = "with freeze={freeze}"
LAYERS = "freeze=partial, full, gradual or lp_ft"


class Rule(NamedTuple):
    """keys: with a section all of its keys; otherwise: the way in which they do nothing; use: the one they are for."""

    keys: tuple[str, ...]
    act: Callable[[TrainConfig, Parts], bool]
    otherwise: str
    use: str

    def covers(self, key: str) -> bool:
        return any(key == own or key.startswith(f"{own}.") for own in self.keys)


def _needs(part: Part) -> Callable[[TrainConfig, Parts], bool]:
    return lambda config, parts: part in parts


def _crops(config: TrainConfig, parts: Parts) -> bool:
    return config.augment.crop_area is not None


def _shifts_colours(config: TrainConfig, parts: Parts) -> bool:
    return config.augment.pca_sigma > 0


def _sizes_are_open(config: TrainConfig, parts: Parts) -> bool:
    return config.data.image_size == "auto"


OF_LAYERS = (
    *("optimizer", "schedule", "augment.mixup", "augment.cutmix", "freeze.head_epochs", "freeze.statistics"),
    *("data.batch_size", "data.cache", "data.num_workers", "model.drop_path"),
    *("trainer.max_epochs", "trainer.max_steps", "trainer.patience", "trainer.search_steps", "trainer.accumulate"),
    *("trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.precision", "trainer.compile"),
    *("trainer.label_smoothing", "trainer.ema_decay", "trainer.soup", "trainer.clip_norm"),
    *("trainer.checkpoint_minutes", "trainer.gradient_checkpointing"),
)
RULES = (
    Rule(OF_LAYERS, _needs("layers"), WITH_FREEZE, LAYERS),
    Rule(
        ("augment",),
        lambda config, parts: "layers" in parts or config.probe.views > 0,
        WITH_FREEZE,
        f"{LAYERS}, or probe.views=2",
    ),
    Rule(
        ("head.dropout",),
        lambda config, parts: "layers" in parts or bool(config.head.hidden),
        WITH_FREEZE,
        f"{LAYERS}, or head.hidden=[256]",
    ),
    Rule(
        ("recipe",),
        lambda config, parts: "layers" in parts or config.recipe not in ("lp_ft", "gradual", "fastai"),
        WITH_FREEZE,
        "the freeze= that it sets itself",
    ),
    Rule(("freeze.groups", "freeze.top_groups"), _needs("partial"), WITH_FREEZE, "freeze=partial"),
    Rule(
        ("freeze.top_groups",),
        lambda config, parts: config.freeze.groups is None,
        "with freeze.groups=[{c.freeze.groups[0]},{c.freeze.groups[1]}]",
        "freeze.groups=null",
    ),
    Rule(("freeze.epochs_per_group",), _needs("gradual"), WITH_FREEZE, "freeze=gradual"),
    Rule(
        ("freeze.head_below", "freeze.full_from"),
        _needs("counting"),
        WITH_FREEZE,
        "freeze=auto",
    ),
    Rule(
        ("freeze.head_below", "freeze.full_from"),
        lambda config, parts: config.budget_minutes is None,
        "with budget_minutes={c.budget_minutes:g}",
        "freeze=auto without a time limit",
    ),
    Rule(("probe",), _needs("search"), WITH_FREEZE, "freeze=head, lp_ft or auto"),
    Rule(
        ("probe.l2",),
        lambda config, parts: not config.head.hidden,
        "with head.hidden={c.head.hidden}",
        "head.hidden=[]",
    ),
    Rule(
        ("probe.size_factors", "data.auto_sizes"),
        _sizes_are_open,
        "with data.image_size={c.data.image_size}",
        "data.image_size=auto",
    ),
    Rule(("head.activation",), lambda config, parts: bool(config.head.hidden), "with head.hidden=[]", "hidden layers"),
    Rule(
        ("schedule.milestones", "schedule.step_factor"),
        lambda config, parts: config.schedule.name == "step",
        "with schedule={c.schedule.name}",
        "schedule=step",
    ),
    Rule(
        ("schedule.final",),
        lambda config, parts: config.schedule.name not in ("none", "step"),
        "with schedule={c.schedule.name}",
        "schedule=cosine, one_cycle or exponential",
    ),
    Rule(
        ("schedule.after_head",),
        lambda config, parts: config.freeze.head_epochs > 0,
        "with freeze.head_epochs=0",
        "freeze.head_epochs=1 or more",
    ),
    Rule(
        ("schedule.warmup_max_steps",),
        lambda config, parts: config.schedule.warmup_fraction > 0,
        "with schedule.warmup_fraction=0",
        "schedule.warmup_fraction=0.05",
    ),
    Rule(
        ("trainer.search_steps",),
        lambda config, parts: config.optimizer.learning_rate == "auto",
        "with optimizer.learning_rate={c.optimizer.learning_rate:g}",
        "optimizer.learning_rate=auto",
    ),
    Rule(
        ("imbalance.focal_gamma",),
        lambda config, parts: config.imbalance.method == "focal",
        "with imbalance={c.imbalance.method}",
        "imbalance=focal",
    ),
    Rule(
        ("imbalance.auto_ratio",),
        lambda config, parts: config.imbalance.method == "auto",
        "with imbalance={c.imbalance.method}",
        "imbalance=auto",
    ),
    Rule(("augment.crop_ratio",), _crops, "with augment.crop_area=null", "augment=crop"),
    Rule(("augment.pca_from", "augment.pca_pixels"), _shifts_colours, "with augment.pca_sigma=0", "augment=pca"),
    Rule(
        ("augment.erase_area",),
        lambda config, parts: config.augment.erase > 0,
        "with augment.erase=0",
        "augment=erase",
    ),
    Rule(
        ("logger.project",),
        lambda config, parts: config.logger.mlflow or config.logger.wandb,
        "without a logger that knows projects",
        "logger=mlflow or wandb",
    ),
)


def idle_keys(config: TrainConfig, typed: Collection[str], depth: str | None = None) -> Iterator[str]:
    """Yield a line for each typed key that can do nothing: which, in what way, and what to do.

    depth: how deep is trained, where the number of photos has decided that; None: whatever it may come to.
    """
    parts = _parts(config, depth)
    freeze = depth if depth is not None and config.freeze.mode == "auto" else config.freeze.mode
    for key in typed:
        for rule in RULES:
            if rule.covers(key) and not rule.act(config, parts):
                way = rule.otherwise.format(freeze=freeze, c=config)
                yield f"{key} does nothing {way}: it is for {rule.use}; choose that, or leave {key} out"
                break


def _parts(config: TrainConfig, depth: str | None) -> Parts:
    mode = config.freeze.mode
    if mode != "auto":
        of_mode: dict[str, Parts] = {
            "head": frozenset({"search"}),
            "partial": frozenset({"layers", "partial"}),
            "full": frozenset({"layers"}),
            "gradual": frozenset({"layers", "gradual"}),
            "lp_ft": frozenset({"search", "layers"}),
        }
        return of_mode[mode]
    found: set[Part] = {"search", "counting"}
    if depth != "head":
        found.add("layers")
    if depth == "partial" or (depth is None and config.budget_minutes is None):
        found.add("partial")
    return frozenset(found)
