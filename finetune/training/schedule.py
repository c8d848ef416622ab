"""How the learning rate goes: a pure function of the step."""

from __future__ import annotations

import math

from finetune.config import ScheduleConfig

# of the peak: where one cycle begins (Smith 2018; fastai's default)
CYCLE_START = 1 / 25


def rate_at(config: ScheduleConfig, step: int, steps: int) -> float:
    """Return the learning rate of a step, counted from 0, as a share of the peak."""
    rising = math.ceil(config.warmup_fraction * steps)
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
