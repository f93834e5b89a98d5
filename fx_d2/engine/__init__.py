"""The training loop's own parts: schedules, hooks, checkpoints (Detectron2 keeps the loop)."""
