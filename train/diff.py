"""`python -m train.diff A B [--json]`: the differences between two runs."""

from __future__ import annotations

import json
import sys

from train.shadowing import refuse_foreign_inference

USAGE = "usage: python -m train.diff RUN RUN [--json]"


@refuse_foreign_inference("diff")
def main(arguments: list[str] | None = None) -> int:
    """Compare two runs; return the exit status: 0 compared, 2 the input is wrong."""
    from inference.runtime import run_command

    return run_command("diff", command, arguments, prints_result=True)


def command(arguments: list[str]) -> int:
    """Print the usage or a comparison; return the exit status."""
    from inference.runtime import output

    as_json = "--json" in arguments
    arguments = [argument for argument in arguments if argument != "--json"]
    if len(arguments) != 2 or arguments[0] in ("-h", "--help"):
        asked = arguments[:1] in (["-h"], ["--help"])
        output(f"{USAGE}\nRUN is the folder of a run, as runs/mine.", is_error=not asked)
        return 0 if asked else 2
    from inference.runtime import quiet_libraries

    quiet_libraries()
    from train.runs import compare_runs, open_run

    found = compare_runs(*map(open_run, arguments))
    if as_json:
        output(json.dumps(found.as_dict(), indent=1, default=str))
    else:
        from train.runs import show

        show(found, *arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
