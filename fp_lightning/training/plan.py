"""What a recipe takes before it runs: the memory of each GPU, the time, and what to change if it does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fp_lightning.errors import InputError
from fp_lightning.training.footprint import Footprint, footprint
from fp_lightning.training.gpus import FRAGMENTED, GIB, GPUS, RESERVED, fits, seconds
from fp_lightning.training.simulation import Setting

PARTS = {  # of a footprint, as the report calls them
    "frozen": "weights that do not train",
    "trained": "weights that train",
    "gradients": "gradients",
    "optimiser": "moments of AdamW",
    "average": "average of the weights",
    "teacher": "teacher and target of a distillation",
    "buckets": "buckets of DDP",
    "gathered": "weights gathered from shards",
    "step": "activations and intermediate results",
}


@dataclass(frozen=True)
class Plan:
    """The memory and time of a setting on a GPU."""

    setting: Setting
    cost: Footprint
    gpu: str
    utilisation: float  # share of the GPU's peak TFLOP/s
    steps: int  # optimiser steps; -1 for no limit
    remedies: list[tuple[str, int]]  # options to add, in this order, and the peak in bytes with them and those before

    @property
    def memory(self) -> int:
        """Memory of the GPU in GiB."""
        return GPUS[self.gpu][0]

    @property
    def tflops(self) -> int:
        """Peak of the GPU in dense bfloat16 TFLOP/s."""
        return GPUS[self.gpu][1]

    @property
    def fits(self) -> bool:
        """Whether the peak fits the GPU."""
        return fits(self.cost.peak, self.memory)

    @property
    def seconds_per_step(self) -> float:
        """Seconds per optimiser step."""
        return seconds(self.cost.operations, self.tflops, self.utilisation)

    @property
    def hours(self) -> float | None:
        """Hours for all steps, None without a limit."""
        return self.seconds_per_step * self.steps / 3600 if self.steps > 0 else None

    def to_json(self) -> dict[str, Any]:
        """Return everything that the report says, as numbers.

        Keys: "setting" (fields of `Setting`), "gpu", "gpu_memory_gib", "gpu_tflops", "utilisation", "bytes" (by part of
        `Footprint`), "peak_bytes" (of tensors on one GPU), "reserved_gib" and "fragmented" (not usable for tensors),
        "fits", "remedies" (list of {"options", "peak_bytes", "fits"}, each with those before), "trainable_weights",
        "operations_per_step" (floating point, per process), "seconds_per_step", "steps", "hours".
        """
        return {
            "setting": asdict(self.setting),
            "gpu": self.gpu,
            "gpu_memory_gib": self.memory,
            "gpu_tflops": self.tflops,
            "utilisation": self.utilisation,
            "bytes": {name: getattr(self.cost, name) for name in PARTS},
            "peak_bytes": self.cost.peak,
            "reserved_gib": RESERVED,
            "fragmented": FRAGMENTED,
            "fits": self.fits,
            "remedies": [
                {"options": words, "peak_bytes": peak, "fits": fits(peak, self.memory)} for words, peak in self.remedies
            ],
            "trainable_weights": self.cost.trainable,
            "operations_per_step": self.cost.operations,
            "seconds_per_step": self.seconds_per_step,
            "steps": self.steps,
            "hours": self.hours,
        }


def make_plan(setting: Setting, steps: int, gpu: str, utilisation: float) -> Plan:
    """Plan a setting on a GPU; if it does not fit, also what to change.

    Raises:
        InputError: an unknown GPU, a utilisation outside of (0, 1], or as `footprint`.
    """
    if gpu not in GPUS:
        raise InputError(f"--gpu must be one of {', '.join(GPUS)}, got {gpu}")
    if not 0 < utilisation <= 1:
        raise InputError(f"--utilisation must be above 0 and at most 1, got {utilisation:g}")
    cost, memory = footprint(setting), GPUS[gpu][0]
    remedies = [] if fits(cost.peak, memory) else list(cheaper(setting, cost.peak, memory))
    return Plan(setting, cost, gpu, utilisation, steps, remedies)


def report(plan: Plan) -> Sequence[str]:
    """Return a plan as lines of text."""
    setting, cost = plan.setting, plan.cost
    height, width = setting.size
    rows = {label: getattr(cost, name) for name, label in PARTS.items()} | {"in all, GiB": cost.peak}
    lines = [
        f"{setting.model}, {height} × {width} px, {setting.processes} × {plan.gpu} ({plan.memory} GiB), "
        f"{setting.strategy}, {setting.precision}, {setting.batch_size} samples × {setting.accumulate} a process; "
        f"trains {setting.trains}, {cost.trainable:,} weights",
        "",
        *(f"  {label:<38}{value / GIB:9.2f}" for label, value in rows.items() if value),
        "",
        f"{'It fits' if plan.fits else 'It does not fit'}: of {plan.memory} GiB the driver and libraries take "
        f"{RESERVED}, {FRAGMENTED:.0%} of the rest is lost to fragments.",
    ]
    if not plan.fits:
        lines += _remedies(plan)
    pace = f"{plan.utilisation:.0%} of {plan.tflops} TFLOP/s"
    time = f"{cost.operations / 1e12:.1f} TFLOP a step and process: {plan.seconds_per_step:.2g} s at {pace}"
    total = "" if plan.hours is None else f", {plan.hours:.2g} h for {plan.steps:,} steps"
    return [*lines, "", time + total]


def _remedies(plan: Plan) -> Iterator[str]:
    yield "What to add, in this order:"
    for words, peak in plan.remedies:
        yield f"  {words:<62}{peak / GIB:9.2f} GiB{', fits' if fits(peak, plan.memory) else ''}"
    if not plan.remedies or not fits(plan.remedies[-1][1], plan.memory):
        yield "None of that is enough: use a smaller --data.size, or a larger GPU."


def cheaper(setting: Setting, least: int, memory: float) -> Iterator[tuple[str, int]]:
    """Yield what to change when memory runs out: options, and the peak in bytes with them and those before.

    Options that save less than 1 % are left out. Ends with the first that fits `memory` GiB.

    Args:
        setting: the setting that does not fit.
        least: its peak in bytes.
        memory: of the GPU, GiB.
    """
    whole = setting.batch_size * setting.accumulate
    sharded = setting.strategy == "sharded"
    changes: list[tuple[str, dict[str, Any]]] = [
        ("--model.editor.gradient_checkpointing true", {"gradient_checkpointing": True}),
        ("--config cached", {"cached": True, "augmentation_draws": setting.augmentation_draws or 4}),
        (
            f"--data.batch_size 1 --trainer.accumulate_grad_batches {whole}",
            {"batch_size": 1, "accumulate": whole},
        ),
        *([] if sharded else [("--model.optimizer adamw_8bit", {"optimizer": "adamw_8bit"})]),
        *(
            (f"--model.editor.trains {trains}", {"trains": trains})
            for trains in ("temporal", "lora", "matching+control")
        ),
    ]
    for words, change in changes:
        other = replace(setting, **change)
        peak = footprint(other).peak
        if peak > 0.99 * least:
            continue
        setting, least = other, peak
        yield words, peak
        if fits(peak, memory):
            return


def setting_of(config: Any) -> tuple[Setting, int]:
    """Return the setting of a parsed `fit` configuration, and its number of steps.

    Raises:
        InputError: it trains no editor, or the data module has no size.
    """
    model, data, trainer = config.model.init_args, config.data.init_args, config.trainer
    editor = getattr(getattr(model, "editor", None), "init_args", None)
    if editor is None or not hasattr(data, "size"):
        raise InputError("plan is for recipes that train an editor; stack svd or tiny with a signal")
    if data.size == "auto":
        raise InputError("data.size auto is for predict; set data.size to the height and width to train at")
    processes = _devices(trainer.devices) * trainer.num_nodes
    names = [getattr(callback, "class_path", "") for callback in trainer.callbacks or []]
    return Setting(
        model=editor.model,
        size=tuple(data.size),
        batch_size=data.batch_size,
        precision=str(trainer.precision or "32-true"),
        attention=editor.attention,
        trains=editor.trains,
        lora_rank=editor.lora_rank,
        gradient_checkpointing=editor.gradient_checkpointing,
        augmentation_draws=editor.augmentation_draws,
        cached=getattr(data, "latents", None) is not None and editor.augmentation_draws is not None,
        ema=any(name.endswith("TrainableEMA") for name in names),
        accumulate=trainer.accumulate_grad_batches,
        optimizer=getattr(model, "optimizer", "adamw"),
        strategy=_strategy(trainer.strategy, processes),
        processes=processes,
        distills=config.model.class_path.endswith(".DistillationModule"),
    ), trainer.max_steps


def _strategy(given: Any, processes: int) -> str:
    """Return the name of `trainer.strategy`, also if it is a class with options."""
    name = str(getattr(given, "class_path", given)).rpartition(".")[2]
    if name == "ShardedStrategy":
        return "sharded"
    if processes == 1:
        return "auto"
    if name != "DDPStrategy":
        return "ddp" if name.startswith("ddp") else name
    options = {**(given.get("init_args") or {}), **(given.get("dict_kwargs") or {})}
    return "ddp_views" if options.get("gradient_as_bucket_view") else "ddp"


def _devices(given: Any) -> int:
    """Return the number of devices per machine in `trainer.devices`.

    Raises:
        InputError: it does not say.
    """
    if isinstance(given, list):
        return len(given)
    if not str(given).isdigit():
        raise InputError(f"plan needs to know the number of GPUs: set --trainer.devices, got {given}")
    return int(given)
