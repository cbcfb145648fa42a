"""Trains on the ranks of torchrun, and writes what each rank holds afterwards."""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch.distributed.tensor import DTensor

from inference.recipe.loader import load_recipe
from train.config.schema import train_schema
from train.trainer import Trainer


def main() -> None:
    recipe_file, folder, *overrides = sys.argv[1:]
    trainer = Trainer(load_recipe(recipe_file, train_schema, overrides))
    optimization, facts = trainer.optimization, {}
    close = trainer.close

    def look() -> None:
        named = dict(trainer.objective.named_parameters())
        named |= {f"base.{name}": one for name, one in trainer.base.denoiser.named_parameters()}
        divided = {name: one for name, one in named.items() if isinstance(one, DTensor)}
        facts["plain"] = [name for name in named if name not in divided]
        facts["divided"] = len(divided)
        facts["weights"] = held(divided.values())
        states = optimization.optimizer.state.values()
        facts["state"] = held(one for state in states for one in state.values() if one.ndim)
        assert optimization.ema is not None
        whole = sum(one.nbytes for one in trainer.objective.parameters())
        facts["averages"] = sum(one.nbytes for one in optimization.ema.shadow_params), whole
        close()

    trainer.close = look
    trainer.train()
    Path(folder, f"{os.environ['RANK']}.json").write_text(json.dumps(facts))


def held(tensors: Iterable[Any]) -> tuple[int, int]:
    """Bytes of the shares of tensors, and of the tensors."""
    found = [(one.to_local().nbytes, one.nbytes) for one in tensors]
    return sum(share for share, _ in found), sum(whole for _, whole in found)


main()
