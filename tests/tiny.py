"""A recipe that goes through every motion in a moment, and learns little."""

from dataclasses import replace

from lib.recipes.schema import OPENKBP, NetworkConfig, ScheduleConfig

TINY = replace(
    OPENKBP,
    name="tiny",
    spacing_mm=(12.0, 12.0, 8.0),
    spacing_tolerance=0.0,
    crop_vox=(32, 32, 32),
    network=NetworkConfig(width=2, dropout=0.1),
    schedule=ScheduleConfig(
        epochs=3,
        steps_per_epoch=2,
        learning_rate=2e-3,
        decay="cosine",
        ema_decay=0.9,
        gradient_clip=5.0,
        validate_every=2,
    ),
)
