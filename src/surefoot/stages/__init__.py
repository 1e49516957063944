"""The loops, one flat generator a stage: `steps(parts, cfg)` yields what one step did, `run` drains it."""
