"""Values by frame: keyframes, prompts, seeds, cadence."""
