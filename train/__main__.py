"""Train a recipe: `python -m train RECIPE [key=value ...]`."""

import os
import signal
import sys

from train.shadowing import refuse_foreign_inference

USAGE = "usage: python -m train RECIPE [key=value ...]"


@refuse_foreign_inference("train")
def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 0 done, 1 failed, 2 invalid input, 130/143 stopped and saved."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        from inference.runtime import output

        output(f"{USAGE}\nEvery key is explained in docs/recipes.md.", is_error=not arguments)
        return 0 if arguments else 2
    from inference.recipe import report
    from inference.runtime import InputError

    try:
        return train(arguments[0], arguments[1:])
    except InputError as error:
        report("train", error)
        return 2


def train(path: str, overrides: list[str]) -> int:
    """Load the recipe, and only then the heavy libraries."""
    from inference.recipe import (
        find_recipe,
        is_first_process,
        load_recipe,
        report,
        warnings_reported,
    )
    from inference.runtime import quiet_libraries
    from train.config import train_schema
    from train.places import check_places

    with warnings_reported("train"):
        recipe = load_recipe(find_recipe(path), train_schema, overrides)
    quiet_libraries()
    check_places(recipe)

    from inference.runtime import Interrupted, output
    from train.common import RunEndedError, lost_processes_reported
    from train.trainer import Trainer

    try:
        with lost_processes_reported(lambda: int(os.environ.get("WORLD_SIZE", "1")) > 1):
            trainer = Trainer(recipe)
            artifact = trainer.train()
    except Interrupted as stop:
        report("train", f"{stop}; resume=true continues")
        return 128 + stop.number
    except RunEndedError as error:
        if is_first_process() or not error.of_all_processes:
            report("train", error)
        return 1
    except KeyboardInterrupt:  # the second Ctrl-C, or one before the first step
        report("train", "stopped at once; resume=true continues from the newest checkpoint")
        return 128 + signal.SIGINT
    if trainer.is_main:
        output(f"artifact: {artifact}")
        grid = trainer.run.folder.grid(trainer.step_number)
        if grid.is_file():
            output(f"grid:     {grid}")
        output(f"watch:    tensorboard --logdir {recipe.output_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
