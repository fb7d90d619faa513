"""From gradients to weights: plan, schedules, optimizers, averages, precision."""
