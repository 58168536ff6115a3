"""Reports on one program on one set of devices, as JSON and as text."""

import dataclasses
import importlib.metadata
from typing import Any

from unclip_jax.parallel.place import size_text
from unclip_jax.planning import communication, hlo, work
from unclip_jax.planning.chips import Chip
from unclip_jax.planning.compile_target import CompileTarget
from unclip_jax.planning.estimate import LABEL, Estimate, Interval, estimate, highest, times
from unclip_jax.planning.program import CompiledProgram, Program, RejectedProgram, compile_program
from unclip_jax.training import memory
from unclip_jax.training.memory import count_text


def make(program: Program, target: CompileTarget, *, effort: str = "default") -> dict[str, Any]:
    """Compiles `program` and returns a report on it, JSON-ready.

    Args:
        program: on a mesh over the target's devices.
        target: devices to compile for.
        effort: of the compiler.
    """
    result = compile_program(program, effort=effort)
    chips = program.mesh.size
    report: dict[str, Any] = {
        "what": program.what,
        "target": target.name,
        "chips": chips,
        "mesh": dict(program.mesh.shape),
        "examples_per_step": program.examples,
        "parameters": program.parameters,
        "compiler": {"effort": effort, **_versions(target)},
        "flops": {
            "model": program.model_flops,
            "traced": program.traced.flops,
            "not_counted": list(program.traced.unknown),
        },
        "memory_per_chip": dict(program.resident),
    }
    if isinstance(result, RejectedProgram):
        _add_rejection(report, result, target)
    else:
        _add_measures(report, result, program, target)
    report["advice"] = _advice(report, program)
    return report


def _versions(target: CompileTarget) -> dict[str, str]:
    names = ("jax", "jaxlib") if target.real else ("jax", "jaxlib", "libtpu")
    return {name: importlib.metadata.version(name) for name in names}


def _add_rejection(
    report: dict[str, Any], rejection: RejectedProgram, target: CompileTarget
) -> None:
    sizes = report["memory_per_chip"]
    sizes["peak"], sizes["available"] = rejection.required, target.chip.hbm if target.chip else None
    report["fits"], report["refusal"] = False, rejection.reason


def _add_measures(
    report: dict[str, Any], compiled: CompiledProgram, program: Program, target: CompileTarget
) -> None:
    report["compiler"]["seconds"] = round(compiled.seconds, 1)
    report["fits"] = _sizes(report, compiled, program) <= _available(report, program, target)
    if compiled.text is None:
        report["estimate"], report["no_text"] = None, compiled.failure
        return
    module = hlo.parse(compiled.text)
    done = work.measure(module)
    moved = communication.bytes_by_kind(
        communication.collectives(module, devices=program.mesh.size)
    )
    share = program.traced.flops / program.mesh.size
    report["flops"] |= {
        "compiled_per_chip": done.flops,
        "compiled_over_even_share": done.flops / share if share else None,
        "hidden_in_calls": list(done.hidden),
    }
    report["loops_of_unknown_length"] = list(module.endless)
    report["memory_bytes_per_chip"] = done.bytes
    report["collective_bytes_per_chip"] = {**moved, "total": sum(moved.values())}
    if target.chip is None:
        report["estimate"] = None
        return
    total = sum(moved.values())
    roofline = times(done, traced_flops=share, collective_bytes=total, chip=target.chip)
    slowest = None
    if report["compiler"]["effort"] == "default":
        slowest = highest(done, collective_bytes=total, chip=target.chip)
    estimated = estimate(
        roofline,
        slowest,
        model_flops=program.model_flops,
        examples=program.examples,
        calls=program.calls,
        chips=program.mesh.size,
        chip=target.chip,
    )
    report["estimate"] = _estimate_json(estimated, target.chip)


def _sizes(report: dict[str, Any], compiled: CompiledProgram, program: Program) -> int:
    """Adds the bytes per chip by kind; returns their peak."""
    xla, sizes = compiled.memory, report["memory_per_chip"]
    peak = (
        xla.argument_size_in_bytes
        + xla.output_size_in_bytes
        - xla.alias_size_in_bytes
        + xla.temp_size_in_bytes
        + xla.generated_code_size_in_bytes
    )
    sizes["inputs"] = max(0, xla.argument_size_in_bytes - sum(program.resident.values()))
    sizes["activations_and_scratch"] = xla.temp_size_in_bytes
    sizes["code"] = xla.generated_code_size_in_bytes
    sizes["peak"] = peak
    return peak


def _available(report: dict[str, Any], program: Program, target: CompileTarget) -> float:
    """Returns the bytes of one chip; simulated devices of one CPU share its memory."""
    available: float
    if target.chip is not None:
        available = target.chip.hbm
    else:
        available = memory.available(program.mesh) / len(program.mesh.local_devices)
    report["memory_per_chip"]["available"] = available
    return available


def _estimate_json(result: Estimate, chip: Chip) -> dict[str, Any]:
    seconds = dataclasses.asdict(result.times)
    return {
        "label": LABEL,
        "peaks": {
            "chip": chip.name,
            "flops": chip.flops,
            "hbm_bandwidth": chip.hbm_bandwidth,
            "links_one_axis": chip.one_axis,
            "links_all": chip.all_axes,
            "source": chip.source,
        },
        "roofline_seconds": {**seconds, "binds": result.times.binds},
        "step_seconds": list(result.step),
        "mfu": list(result.mfu),
        "examples_per_second": list(result.rate),
        "days": None if result.days is None else list(result.days),
        "chip_hours": None if result.chip_hours is None else list(result.chip_hours),
    }


def _advice(report: dict[str, Any], program: Program) -> list[str]:
    """Returns advice, most useful first."""
    lines = []
    state, available = sum(program.resident.values()), report["memory_per_chip"]["available"]
    if not report["fits"]:
        if available is not None and program.what == "train" and state > 0.5 * available:
            lines.append(
                f"the state alone is {size_text(state)} per chip: raise fsdp in --mesh (with "
                "--config.rules=fsdp) or take more chips"
            )
        else:
            lines.append(f"lower the memory of activations: {', or '.join(program.memory_options)}")
    wasted = report["flops"].get("compiled_over_even_share")
    if wasted is not None and wasted > 1.1:
        lines.append(
            f"chips compute {wasted:.2f} times their even share: some work is repeated on several "
            "of them; use another mesh"
        )
    result = report.get("estimate")
    if result and result["roofline_seconds"]["binds"] == "interconnect":
        lines.append(
            "chips wait for each other: a smaller fsdp, a larger batch per chip or fewer chips"
        )
    return lines


def as_text(report: dict[str, Any]) -> str:
    """Formats a report as text."""
    mesh = ", ".join(f"{name} {size}" for name, size in report["mesh"].items())
    lines = [
        f"{report['what']} on {report['target']}: {report['chips']} chips ({mesh}), "
        f"{report['examples_per_step']} examples per step, "
        f"{count_text(report['parameters'])} parameters",
        _memory_line(report),
    ]
    flops = report["flops"]
    lines.append(
        f"FLOPs per step: model {flops['model']:.4g}, with recomputation {flops['traced']:.4g}"
        + (f"; per chip {flops['compiled_per_chip']:.4g}" if "compiled_per_chip" in flops else "")
    )
    if "memory_bytes_per_chip" in report:
        moved = report["collective_bytes_per_chip"]
        kinds = ", ".join(f"{k} {size_text(v)}" for k, v in moved.items() if k != "total")
        lines.append(
            f"per chip and step: memory {size_text(report['memory_bytes_per_chip'])}, collectives "
            f"{size_text(moved['total'])}" + (f" ({kinds})" if kinds else "")
        )
        lines += _estimate_lines(report["estimate"])
    if "no_text" in report:
        lines.append(
            "no count of work, traffic and time: XLA failed to write the compiled program "
            f"({report['no_text']})"
        )
    lines.append("fits: yes" if report["fits"] else f"fits: no ({report.get('refusal', 'memory')})")
    lines += [f"  change: {line}" for line in report["advice"]]
    compiler = report["compiler"]
    versions = ", ".join(f"{n} {compiler[n]}" for n in ("jax", "libtpu") if n in compiler)
    lines.append(f"compiled with {compiler['effort']} effort ({versions}); nothing was run")
    return "\n".join(lines) + "\n"


def _memory_line(report: dict[str, Any]) -> str:
    sizes = report["memory_per_chip"]
    kinds = [k for k in sizes if k not in ("peak", "available")]
    parts = ", ".join(f"{k.replace('_', ' ')} {size_text(sizes[k])}" for k in kinds)
    peak = "unknown" if sizes["peak"] is None else size_text(sizes["peak"])
    available = "unknown" if sizes["available"] is None else size_text(sizes["available"])
    return f"memory per chip: peak {peak} of {available} ({parts})"


def _estimate_lines(result: dict[str, Any] | None) -> list[str]:
    if result is None:
        return ["no estimate of time: the peaks of this device are unknown"]
    seconds = result["roofline_seconds"]
    roof = ", ".join(
        f"{n} {1e3 * seconds[n]:.4g} ms" for n in ("compute", "memory", "interconnect")
    )
    lines = [
        f"roofline: {roof}; {seconds['binds']} binds",
        f"{result['label']}: step {_range(result['step_seconds'], 1e3)} ms, "
        f"MFU {_range(result['mfu'], 100)} %, {_range(result['examples_per_second'])} examples/s",
    ]
    if result["days"]:
        lines.append(
            f"whole run: {_range(result['days'])} days, {_range(result['chip_hours'])} chip-hours"
        )
    return lines


def _range(bounds: list[float | None] | Interval, scale: float = 1.0) -> str:
    """Formats bounds as '26 to 82', or 'at least 59' or 'at most 83' with one of them unknown."""
    low, high = (None if each is None else f"{each * scale:.3g}" for each in bounds)
    if low is None:
        return f"at most {high}"
    return f"at least {low}" if high is None else f"{low} to {high}"
