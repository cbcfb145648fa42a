"""`limner COMMAND ...`: one console command over the mains that exist.

Nothing but the table is imported before the command is known to exist.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from train.shadowing import refuse_foreign_inference


@dataclass(frozen=True)
class Command:
    """A subcommand."""

    main: str
    """`module:function`, which takes the arguments and returns the exit status."""
    summary: str
    """One sentence."""
    example: str


COMMANDS = {
    "train": Command(
        "train.__main__:main",
        "Train a recipe; on several GPUs use `accelerate launch -m train`.",
        "limner train configs/lora.yaml name=my_dog data.path=datasets/my_dog",
    ),
    "draw": Command(
        "inference.__main__:main",
        "Draw images, clips or an animation from a recipe, a picture or Deforum settings.",
        "limner draw configs/inference/images.yaml images.cat.seed=7 settings.steps=30",
    ),
    "plan": Command(
        "train.plan.__main__:main",
        "Print what a run will take, without training: steps, data, memory, disk.",
        "limner plan configs/lora.yaml data.path=datasets/my_dog",
    ),
    "diff": Command(
        "train.diff:main",
        "Compare two runs: recipe, environment, data, losses, weights.",
        "limner diff runs/my_dog runs/my_dog_rank_32",
    ),
    "rerun": Command(
        "train.rerun:main",
        "Train a run again from its folder and compare the files byte by byte.",
        "limner rerun runs/my_dog",
    ),
    "inspect": Command(
        "inference.inspect:main",
        "Print what an artifact, a base model or a picture is, with its metadata.",
        "limner inspect runs/my_dog/artifacts/last.safetensors",
    ),
    "convert": Command(
        "inference.convert:main",
        "Write an artifact or a base model in another format; merge LoRAs.",
        "limner convert my_dog.safetensors my_dog_diffusers.safetensors --to diffusers",
    ),
    "stitch": Command(
        "inference.deforum.stitch:main",
        "Make the videos of an animation again from its frames.",
        "limner stitch outputs/animations/cats fps=24 make_gif=true",
    ),
    "list": Command(
        "train.listing:main",
        "List what recipes can name: objectives, samplers, shipped recipes and more.",
        "limner list samplers",
    ),
    "schema": Command(
        "train.config.schema:main",
        "Print the JSON Schema of recipes, for editors.",
        "limner schema train > train.schema.json",
    ),
    "plugins": Command(
        "train.listing:list_plugins",
        "List installed and named plug-ins, and whether they load.",
        "limner plugins",
    ),
}


@refuse_foreign_inference("limner")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status; 2 if there is no such command."""
    from inference.runtime import run_command

    return run_command("limner", choose, arguments)


def choose(arguments: list[str]) -> int:
    """Print the usage, or run the subcommand that the first argument names."""
    from inference.runtime import output

    if not arguments or arguments[0] in ("-h", "--help"):
        output(usage(), is_error=not arguments)
        return 0 if arguments else 2
    name, *rest = arguments
    if name == "--version":
        from inference.runtime import describe_version

        output(f"limner {describe_version()}")
        return 0
    if name not in COMMANDS:
        output(f"limner: {unknown(name)}", is_error=True)
        return 2
    command = COMMANDS[name]
    if rest[:1] in (["-h"], ["--help"]):
        output(f"{command.summary}\nexample: {command.example}\n")
    return run(command, rest)


def run(command: Command, arguments: list[str]) -> int:
    """Import the main of a subcommand and call it."""
    from pkgutil import resolve_name

    return resolve_name(command.main)(arguments)


def usage() -> str:
    """Return the text of `limner --help`."""
    lines = ["usage: limner COMMAND ...   (limner COMMAND --help explains one, --version)", ""]
    width = max(map(len, COMMANDS))
    for name, command in COMMANDS.items():
        lines += [
            f"  {name:<{width}}  {command.summary}",
            f"  {'':<{width}}  {command.example}",
            "",
        ]
    return "\n".join([*lines, "Recipes are explained in docs/recipes.md."])


def unknown(name: str) -> str:
    """Return the message for a command that does not exist, with the nearest one that does."""
    from difflib import get_close_matches

    near = get_close_matches(name.lower(), COMMANDS, 1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(COMMANDS)}"
    return f"no command is called {name!r}; {hint}"


if __name__ == "__main__":
    sys.exit(main())
