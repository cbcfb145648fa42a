"""`python -m train.plan RECIPE [key=value ...] [FLAGS]`: the figures of a run, without training."""

from __future__ import annotations

import json
import os
import sys

from train.shadowing import refuse_foreign_inference

USAGE = """\
usage: python -m train.plan RECIPE [key=value ...] [--json] [--check-pictures] [--probe]
                                   [--fit SIZE] [--processes N] [--bandwidth SPEED]
Nothing is trained, and without --probe no weight is read.
  --json            the plan as JSON in place of tables
  --check-pictures  look for duplicates and near-duplicates too: decodes each picture once, and
                    keeps what it finds in an index beside them
  --probe           take two real steps of each stage on this device, and report time and memory of
                    a step and of the run; no result is kept
  --fit SIZE        print the settings with which the run fits into a GPU of this size, as in
                    --fit 12GB, in place of the plan; the exit status is 1 if none are enough
  --processes N     plan for so many processes, without starting them: memory and traffic of each
  --bandwidth SPEED what a process sends to others, as in 50GB/s or 100Gbit/s; if not given, 32GB/s
                    (PCIe 4.0 with 16 lanes)"""
FLAGS = ("--json", "--check-pictures", "--probe")


@refuse_foreign_inference("plan")
def main(arguments: list[str] | None = None) -> int:
    """Print a plan; return the exit status: 0 done, 2 the input is wrong."""
    from inference.runtime import run_command

    return run_command("plan", command, arguments, prints_result=True)


def command(arguments: list[str]) -> int:
    """Print the usage or a plan; return the exit status."""
    from inference.runtime import output

    given, arguments = values_of(arguments, "--fit", "--processes", "--bandwidth")
    flags = {argument for argument in arguments if argument in FLAGS}
    arguments = [argument for argument in arguments if argument not in FLAGS]
    if not arguments or arguments[0] in ("-h", "--help"):
        output(USAGE, is_error=not arguments)
        return 0 if arguments else 2
    from inference.recipe import find_recipe, load_recipe, warnings_reported
    from inference.runtime import keys_named, quiet_libraries
    from train.config import train_schema
    from train.places import check_places
    from train.plan.traffic import processes_in

    with warnings_reported("plan"):
        recipe = load_recipe(find_recipe(arguments[0]), train_schema, arguments[1:])
        quiet_libraries()
        check_places(recipe)
        processes = processes_in(given.get("--processes", os.environ.get("WORLD_SIZE", "1")))
        if "--fit" in given:
            from train.plan.fit import card_bytes, fit_recipe, show

            found = fit_recipe(arguments, card_bytes(given["--fit"]), processes)
            if "--json" in flags:
                output(json.dumps(found.as_dict(), indent=1))
            else:
                show(found, arguments[0])
            return 0 if found.is_enough else 1
        from train.plan.plan import plan_run, probed

        with keys_named(recipe):
            bandwidth = given.get("--bandwidth")
            plan = plan_run(recipe, processes, "--check-pictures" in flags, bandwidth)
            if "--probe" in flags:
                plan = probed(plan)
    if "--json" in flags:
        output(json.dumps(plan.as_dict(), indent=1))
    else:
        from train.plan.table import show

        show(plan)
    return 0


def values_of(arguments: list[str], *names: str) -> tuple[dict[str, str], list[str]]:
    """Return the values of `NAME VALUE` or `NAME=VALUE` by name, and the other arguments.

    A name without a value has an empty one, which each of them refuses.
    """
    values: dict[str, str] = {}
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name in names:
            values[name] = value if equals else next(rest, "")
        else:
            others.append(argument)
    return values, others


if __name__ == "__main__":
    sys.exit(main())
