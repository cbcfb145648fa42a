"""The plan as a table in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from inference.runtime import open_console
from train.memory import GIB, MemoryPlan, in_gib
from train.plan.data import CachePlan, ValidationPlan
from train.plan.lint_table import caption_rows, picture_rows
from train.plan.plan import Plan
from train.plan.streams import StreamPlan

if TYPE_CHECKING:
    from train.plan.probe import Probe
    from train.plan.traffic import Waiting


def show(plan: Plan) -> None:
    """Print a plan."""
    console = open_console(highlight=False, soft_wrap=True)
    for table in (
        _run(plan),
        *([_subsets(plan)] if plan.subsets else []),
        _stages(plan),
        _checks(plan),
        _memory(plan),
        *([_waiting(plan, plan.waiting)] if plan.waiting is not None else []),
    ):
        console.print(table)
    if plan.probe is not None:
        console.print(_probe(plan.probe))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=bool(columns))
    for number, column in enumerate(columns or ("", "")):
        table.add_column(column, justify="right" if columns and number else "left")
    return table


def _run(plan: Plan) -> Table:
    recipe, table = plan.recipe, _table(f"run {plan.recipe.name}")
    batch = f"{recipe.train_batch_size} x {recipe.gradient_accumulation_steps} x {plan.data_size}"
    trained = ", ".join(f"{name} {count:,}" for name, count in plan.trained.items())
    examples = sum(stage.examples for stage in plan.stages)
    epochs = sum(stage.epochs for stage in plan.stages)
    rows = [
        ("objective", f"{recipe.objective.type} on {recipe.base_model.path}"),
        ("trained numbers", trained),
        (
            "optimizer steps",
            f"{recipe.max_train_steps:,} (batch x accumulation x processes: {batch})",
        ),
        ("examples", f"{examples:,} in {epochs:.2f} epochs"),
    ]
    if plan.captions is not None:
        captions = plan.captions
        text = f"{captions.with_caption:,} of {captions.pictures:,}, "
        text += f"{captions.different:,} different prompts"
        for count, what in (
            (captions.by_fallback, "by fallback"),
            (captions.empty, "empty"),
            (captions.too_long or 0, "longer than the text encoder reads at once"),
        ):
            text += f", {count:,} {what}" if count else ""
        rows.append(("captions", text))
    if plan.class_pictures is not None:
        counted = plan.class_pictures
        drawn = counted.wanted - counted.there
        rows.append(("class pictures", f"{counted.there:,} there, {drawn:,} to draw"))
    if plan.validation is not None:
        rows.append(("validation", _validation(plan.validation)))
    rows += [("streamed", _stream(one)) for one in plan.streams]
    rows.append(("cache", _cache(plan.cache)))
    disk = plan.disk
    rows.append(
        (
            "disk",
            f"{in_gib(disk.needed)}: {disk.artifacts} artifacts of {in_gib(disk.artifact)}, "
            f"{disk.checkpoints_kept} + 1 checkpoints of {in_gib(disk.checkpoint)}; "
            f"{in_gib(disk.free)} free",
        )
    )
    for row in rows:
        table.add_row(*row)
    return table


def _validation(plan: ValidationPlan) -> str:
    timesteps = ", ".join(map(str, plan.timesteps))
    return (
        f"{plan.examples:,} held back, {plan.validations:,} times at timesteps {timesteps}: "
        f"{plan.forward_passes:,} forward passes"
    )


def _stream(stream: StreamPlan) -> str:
    at = f" at {stream.commit[:12]}" if stream.commit else ""
    return (
        f"{stream.source}{at}: {stream.shards:,} shards of {in_gib(stream.bytes)}, "
        f"{stream.shards_here:,} here ({in_gib(stream.bytes_here)}); at most "
        f"{in_gib(stream.disk_bytes)} are kept, {stream.window} shards are shuffled together"
    )


def _cache(cache: CachePlan) -> str:
    if cache.kind == "off":
        return "off: pictures and captions are encoded in every step"

    def counted(what: str, count: int, found: int | None) -> str:
        if not count:
            return f"no {what} (they change)"
        if cache.kind != "disk":
            return f"{count:,} {what}"
        known = "unknown which are there" if found is None else f"{found:,} there"
        return f"{count:,} {what}, {known}"

    latents = counted("latents", cache.latents, cache.latents_found)
    prompts = counted("prompts", cache.prompts, cache.prompts_found)
    masked = "; masked images are encoded in every step" if cache.masked else ""
    return f"{cache.kind}: {latents}; {prompts}{masked}"


def _subsets(plan: Plan) -> Table:
    table = _table(
        "subsets", "subset", "pictures", "repeats", "in an epoch", "share", "loss weight"
    )
    for subset in plan.subsets:
        table.add_row(
            f"{subset.name} (class)" if subset.is_reg else subset.name,
            f"{subset.pictures:,}",
            f"{subset.repeats:,}",
            f"{subset.examples:,}",
            f"{subset.share:.1%}",
            f"{subset.loss_weight:g}",
        )
    return table


def _stages(plan: Plan) -> Table:
    columns = ("stage", "steps", "micro-batches", "examples", "epochs", "bucket", "in it")
    table = _table("stages", *columns)
    for stage in plan.stages:
        first = (
            stage.name or "whole run",
            f"{stage.first_step:,} … {stage.last_step:,}",
            f"{stage.micro_batches:,}",
            f"{stage.examples:,}",
            f"{stage.epochs:.2f}",
        )
        for bucket, count in stage.buckets.items():
            table.add_row(*first, bucket, f"{count:,}")
            first = ("",) * 5
        for count, what in (
            (stage.repeated, "twice an epoch"),
            (stage.left_out, "too short, left out"),
            (stage.stretched, "too short, stretched"),
        ):
            if count:
                table.add_row(*("",) * 5, what, f"{count:,}")
    return table


def _checks(plan: Plan) -> Table:
    table = _table("captions and pictures")
    rows = [] if plan.caption_lint is None else [*caption_rows(plan.caption_lint)]
    for what, note in (*rows, *picture_rows(plan.picture_lint)):
        table.add_row(what, Text(note))
    return table


PHASES = {
    "captions": "encoding captions",
    "latents": "encoding pictures",
    "prompts": "previews: encoding prompts",
    "denoising": "previews: denoising",
    "decoding": "previews: decoding",
    "step": "a step",
}
"""What the phases of `train.placement` are called."""


def _memory(plan: Plan) -> Table:
    memory: MemoryPlan = plan.memory
    is_checkpointing = plan.recipe.gradient_checkpointing
    title = "memory of each device, measured on shapes"
    if plan.processes > 1:
        title += f" ({_strategy(plan)})"
    table = _table(title, "what", "numbers", "format", "GiB")
    for name, part in memory.parts.items():
        table.add_row(name, f"{part.parameters:,}", part.format, _number(part.bytes))
    word, other = ("with", "without") if is_checkpointing else ("without", "with")
    for what, count in (
        ("trained beside the base model", memory.trained),
        ("gradients", memory.gradients),
        ("optimizer", memory.optimizer),
        ("moving average", memory.ema),
        ("cached prompts", memory.prompts),
        ("blocks that are whole at work", memory.gathered),
        ("copies of gradients between processes", memory.casts),
        ("copies of a tensor in its step", memory.step),
        (f"activations, {word} gradient checkpointing", memory.activations),
        (f"  ({other} it, in their place", memory.other_activations),
        ("trained weights as previews use them", memory.drawn),
    ):
        end = ")" if what.startswith("  (") else ""
        table.add_row(what + end, "", "", _number(count))
    table.add_section()
    for phase, peak in memory.peaks.items():
        parts = ", ".join(memory.at_work[phase]) if peak else ""
        table.add_row(f"peak of {PHASES[phase]}", parts, "", _number(peak))
    if memory.whole_decoding:
        more = memory.whole_decoding - memory.needs["decoding"]
        whole = memory.peak_of("decoding") + more
        table.add_row("  without tiles, where they fit", "", "", _number(whole))
    table.add_row("needed", "", "", _number(memory.peak))
    table.add_row("needed on a CPU, with Python itself", "", "", _number(memory.process))
    for what, count in (
        ("memory of the system, to read the base model", memory.host),
        ("memory of the system, for the optimizer and the average", memory.host_state),
        ("memory of the system, for activations", memory.host_activations),
    ):
        table.add_row(what, "", "", _number(count))
    return table


def _strategy(plan: Plan) -> str:
    """Describe how the processes of a plan divide the work."""
    parallel = plan.recipe.parallel
    context = f", {parallel.context} compute a clip together" if parallel.context > 1 else ""
    away = f", cpu_offload: {parallel.cpu_offload}" if parallel.cpu_offload != "none" else ""
    return f"{parallel.strategy} on {plan.processes} processes{context}{away}"


def _waiting(plan: Plan, waiting: Waiting) -> Table:
    table, traffic = (
        _table(f"traffic of each process in a step ({_strategy(plan)})"),
        waiting.traffic,
    )
    for what, count in (
        ("gradients", traffic.gradients),
        ("weights", traffic.weights),
        ("attention, between those of a clip", traffic.attention),
    ):
        if count:
            table.add_row(what, in_gib(count))
    table.add_row("together", in_gib(traffic.total))
    table.add_row(f"at {waiting.bandwidth / 1e9:g} GB/s", f"{waiting.seconds:.3g} s")
    share, step = waiting.share, waiting.step
    known = "unknown: --probe measures a step, and a run's log has its time"
    if share is not None and step is not None:
        known = f"at most {share:.1%} of a step of {step.seconds:.3g} s ({step.source})"
    table.add_row("share of a step, if nothing overlaps", known)
    return table


def _probe(probe: Probe) -> Table:
    table = _table(f"measured on {probe.device}")
    for stage in probe.stages:
        table.add_row(
            f"a step{f' of stage {stage.name}' if stage.name else ''}", f"{stage.seconds:.3g} s"
        )
    table.add_row("all steps, without savings and previews", _time(probe.steps))
    table.add_row("encoding what no cache holds, about", _time(probe.filling))
    table.add_row("peak of memory in steps", in_gib(probe.peak))
    table.add_row("  where the plan reckons", in_gib(probe.estimated))
    return table


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.3g} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _number(count: int) -> str:
    return f"{count / GIB:.2f}" if count else "-"
