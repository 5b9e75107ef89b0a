"""From data to a dial: tune a small model (`eft tune`), bake a composition into one adapter (`eft bake`); above `eft_engine`."""
