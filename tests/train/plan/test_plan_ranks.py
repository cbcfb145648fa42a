"""What each of several processes holds and sends, by hand; and the options of the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inference.parallel.layout import Layout
from inference.recipe.loader import dump_recipe
from inference.runtime.errors import InputError
from train.config.devices import TrainParallelConfig
from train.config.recipe import TrainRecipe
from train.memory.figures import Divided, MemoryPlan, PartMemory
from train.memory.outline import outlined
from train.memory.planning import memory_planned, traffic_planned
from train.memory.ranks import Traffic, on_each, traffic_of
from train.monitoring.tracking import Board
from train.plan.__main__ import main
from train.plan.traffic import StepTime, Waiting, bandwidth_in, logged_step

Make = Callable[..., TrainRecipe]
PARTS = Divided(denoiser=800, trained=80, learned=40, gathered=300, gradient=8)


def plan(**values: Any) -> MemoryPlan:
    figures = {"trained": 80, "gradients": 40, "optimizer": 80, "ema": 40, "drawn": 20}
    needs = {"step": 1000, "denoising": 100, "decoding": 50}
    parts = {"vae": PartMemory(10, "fp32", 10), "unet": PartMemory(800, "fp32", 800)}
    made = {**figures, "needs": needs, "parts": parts, "denoiser": "unet", "whole": PARTS}
    at_work = {"step": ["unet"], "denoising": ["unet"], "decoding": ["vae"]}
    return MemoryPlan(**{**made, "at_work": at_work, **values})


@pytest.mark.parametrize(
    ("parallel", "expected"),
    [
        ({}, {"casts": 40}),
        ({"gradient_compression": "bf16"}, {"casts": 60}),
        ({"strategy": "zero1"}, {"optimizer": 20}),
        ({"strategy": "zero2"}, {"optimizer": 20, "gradients": 10}),
        (
            {"strategy": "zero2", "cpu_offload": "optimizer"},
            {"optimizer": 0, "gradients": 10, "host_state": 20},
        ),
        *(
            (
                {"strategy": name},
                {
                    "optimizer": 20, "gradients": 10, "trained": 20, "ema": 10, "drawn": 5,
                    "gathered": 300, "casts": 8,
                },
            )
            for name in ("zero3", "fsdp")
        ),
        (
            {"strategy": "fsdp", "cpu_offload": "all"},
            {
                "optimizer": 0, "gradients": 0, "trained": 0, "ema": 10, "drawn": 5,
                "gathered": 300, "casts": 8, "host_state": 20 + 200 + 20 + 10,
            },
        ),
    ],
)  # fmt: skip
def test_memory_of_each_by_strategy(
    parallel: dict[str, Any], expected: dict[str, int], make_recipe: Make
) -> None:
    """Of four processes; what is not named stays as on one."""
    recipe = replace(make_recipe(), parallel=TrainParallelConfig(**parallel))
    before = plan()
    found = on_each(before, recipe, Layout(0, 4), 1)
    weights = {"unet": 800, "vae": 10}
    if recipe.parallel.strategy in ("zero3", "fsdp"):
        weights["unet"] = 0 if recipe.parallel.cpu_offload == "all" else 200
    assert {name: part.bytes for name, part in found.parts.items()} == weights
    names = vars(before).keys() - {"parts"}
    changed = {
        name: getattr(found, name) for name in names if vars(found)[name] != vars(before)[name]
    }
    assert changed == {
        name: value for name, value in expected.items() if value != vars(before)[name]
    }
    assert on_each(before, recipe, Layout(), 1) is before


def test_whole_blocks_count_where_the_denoiser_is_at_work() -> None:
    before, after = plan(), plan(gathered=7)
    added = {phase: after.peaks[phase] - before.peaks[phase] for phase in before.peaks}
    assert added == {"step": 7, "denoising": 7, "decoding": 0}


def test_frames_divide_what_a_step_takes(make_clip_recipe: Make) -> None:
    """Five latent frames on two processes: one has three of them."""
    recipe = replace(make_clip_recipe(), parallel=TrainParallelConfig(context=2))
    found = on_each(plan(), recipe, Layout(0, 2, 2), 5)
    assert found.needs == {"step": 600, "denoising": 60, "decoding": 50}


@pytest.mark.parametrize(
    ("parallel", "expected"),
    [
        ({}, Traffic(gradients=60)),  # 2 x 3/4 x 40
        ({"gradient_compression": "bf16"}, Traffic(gradients=30)),
        ({"strategy": "zero1"}, Traffic(gradients=30, weights=30)),  # as much as DDP
        ({"strategy": "zero2"}, Traffic(gradients=90, weights=30)),
        ({"strategy": "zero3"}, Traffic(gradients=90, weights=3960)),  # 3/4 x 2 x 3 x 880
        ({"strategy": "fsdp"}, Traffic(gradients=90, weights=3960)),
    ],
)
def test_traffic_of_three_micro_batches_on_four(
    parallel: dict[str, Any], expected: Traffic, make_recipe: Make
) -> None:
    recipe = replace(
        make_recipe("gradient_accumulation_steps=3"), parallel=TrainParallelConfig(**parallel)
    )
    assert traffic_of(recipe, PARTS, Layout(0, 4)) == expected
    assert traffic_of(recipe, PARTS, Layout()) == Traffic()


def test_attention_sends_what_other_heads_need(make_clip_recipe: Make) -> None:
    """Two clips of 3 x 2 x 2 tokens and 16 of text, each of 32 numbers of 4 bytes, in 2 layers.

    On two of four processes each has half of the tokens, and sends half of the queries, keys,
    values and outputs of these: forward and backward, and once more with checkpointing.
    """
    recipe = make_clip_recipe("gradient_accumulation_steps=3", "parallel.context=2")
    outline, whole = outlined(recipe, 4), MemoryPlan(whole=PARTS)
    config = outline.objective.base.denoiser.config
    width = config.num_attention_heads * config.attention_head_dim
    tokens = 3 * 2 * 2 + config.max_text_seq_length
    queries = 2 * tokens * width * 4 * config.num_layers
    for is_checkpointing, passes in ((False, 2), (True, 3)):
        own = replace(outline.stages[0].recipe, gradient_checkpointing=is_checkpointing)
        given = replace(outline, stages=[replace(outline.stages[0], recipe=own)])
        found = traffic_planned(recipe, given, whole, 4)
        assert found.attention == 4 * passes * 3 * queries // 2 // 2
        assert found.gradients == 60


@pytest.mark.slow
def test_a_plan_of_fsdp_halves_what_is_divided(make_recipe: Make) -> None:
    objective = "objective={type: text_to_image}"
    one = make_recipe(objective, "gradient_checkpointing=true")
    two = make_recipe(objective, "gradient_checkpointing=true", "parallel=fsdp")
    whole, half = (memory_planned(made, outlined(made, 2), 2) for made in (one, two))
    assert half.parts["unet"].bytes * 2 == whole.parts["unet"].bytes
    assert half.parts["vae"] == whole.parts["vae"]
    for name in ("gradients", "optimizer", "drawn"):
        assert getattr(half, name) * 2 == getattr(whole, name) > 0
    base = outlined(two, 2).objective.base
    sizes = [sum(p.nbytes for p in block.parameters()) for block in base.blocks()]
    others = sum(p.nbytes for p in base.denoiser.parameters()) - sum(sizes)
    assert half.gathered == others + 2 * max(sizes)
    assert half.casts == max(sizes)


def test_what_a_step_waits() -> None:
    traffic = Traffic(gradients=3 * 10**9, weights=10**9)
    assert Waiting(traffic, 2e9).seconds == 2
    assert Waiting(traffic, 2e9).share is None
    assert Waiting(traffic, 2e9, StepTime(6, "alone")).share == 0.25
    assert Waiting(traffic, 2e9, StepTime(8, "two", 2)).share == 0.25
    assert Waiting(traffic, 2e9, StepTime(1, "two", 2)).share == 1


def test_the_time_of_a_step_is_that_of_the_run_s_log(make_recipe: Make, tmp_path: Path) -> None:
    """Two processes with 2 x 3 examples each a step, at 6, 4 and 3 images a second."""
    recipe = make_recipe("gradient_accumulation_steps=3")
    assert logged_step(recipe) is None
    run = tmp_path / "run"
    board = Board(run / "logs", 0, "", print)
    for step, speed in enumerate((6.0, 4.0, 3.0)):
        board.scalars({"images_per_second": speed}, step)
    board.close()
    (run / "recipe.yaml").write_text(dump_recipe(recipe))
    (run / "environment.json").write_text('{"processes": 2}')
    assert logged_step(recipe) == StepTime(3.0, f"the log of {run}", 2)
    assert logged_step(make_recipe()) is None  # of other steps


def test_bandwidths() -> None:
    given = ("50GB/s", "100Gbit/s", "1.25 gb/s", "800 Mbit/s")
    assert [bandwidth_in(text) for text in given] == [50e9, 12.5e9, 1.25e9, 100e6]
    for text in ("", "50", "fast", "0GB/s", "1.2.3GB/s", "5 parsecs"):
        with pytest.raises(InputError, match="--bandwidth: expected bytes or bits a second"):
            bandwidth_in(text)


def test_options_of_the_command(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [str(recipe_file), f"output_dir={tmp_path}", "objective={type: lora, rank: 2}"]
    assert main([*common, "--json", "--processes=2", "--bandwidth", "1MB/s"]) == 0
    found = json.loads(capsys.readouterr().out)
    learned = sum(found["trained"].values()) * 4
    traffic = found["traffic"]
    assert found["processes"] == 2
    assert found["stages"][0]["examples"] == 4 * 2 * 2
    assert (traffic["gradients"], traffic["weights"]) == (learned, 0)
    assert (traffic["seconds"], traffic["step"]) == (learned / 1e6, None)
    for option, message in (
        ("--processes=0", "--processes: expected a number of at least 1, got '0'"),
        ("--processes", "--processes: expected a number of at least 1, got ''"),
        ("--bandwidth", "--bandwidth: expected bytes or bits a second"),
        ("--fit", "--fit"),
    ):
        assert main([*common, option]) == 2
        assert f"plan: {message}" in capsys.readouterr().err


@pytest.mark.slow
def test_the_table_names_strategy_and_bandwidth(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [str(recipe_file), f"output_dir={tmp_path}", "objective={type: lora, rank: 2}"]
    assert main([*common, "--processes", "4", "parallel=zero2"]) == 0
    text = capsys.readouterr().out
    assert "memory of each device, measured on shapes (zero2 on 4 processes)" in text
    assert "traffic of each process in a step (zero2 on 4 processes)" in text
    assert "at 32 GB/s" in text
