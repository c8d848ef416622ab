"""How the learning rate goes: a pure function of the step."""

from __future__ import annotations

import math

from finetune.config import ScheduleConfig

# of the peak: where one cycle begins (Smith 2018; fastai's default)
CYCLE_START = 1 / 25


def rate_in_phases(config: ScheduleConfig, step: int, steps: int, head_steps: int) -> float:
    """Return the learning rate of a step where the first `head_steps` are a phase of their own, as a share of its peak.

    Each phase goes through the whole schedule, as fastai's `fine_tune` runs one cycle in each.
    """
    if step < head_steps:
        return rate_at(config, step, head_steps)
    after = config.after_head if head_steps else 1.0
    return after * rate_at(config, step - head_steps, steps - head_steps)


def rate_at(config: ScheduleConfig, step: int, steps: int) -> float:
    """Return the learning rate of a step, counted from 0, as a share of the peak."""
    rising = math.ceil(config.warmup_fraction * steps)
    if config.warmup_max_steps is not None:
        rising = min(rising, config.warmup_max_steps)
    if step < rising:
        if config.name == "one_cycle":
            return _cosine(CYCLE_START, 1.0, step / rising)
        return (step + 1) / (rising + 1)
    done = (step - rising) / max(1, steps - rising)
    match config.name:
        case "cosine" | "one_cycle":
            return _cosine(1.0, config.final, done)
        case "exponential":
            return float(config.final**done)
        case "step":
            return float(config.step_factor ** sum(step >= share * steps for share in config.milestones))
        case "none":
            return 1.0


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
