"""`mainspring backends` and `mainspring check`, run as a process of their own: `python -m mainspring.core.commands`.

The CLI belongs to the server, which does not import backends or plans; it executes this module with an `EngineConfig`
in JSON. Nothing here loads weights or opens a device.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mainspring.core.backend import Backend, Capabilities, Unavailable
from mainspring.core.config import EngineConfig
from mainspring.core.conformance.matrix import markdown, reports, table
from mainspring.core.errors import StartupError
from mainspring.core.plan import Plan, draft
from mainspring.core.plugins import load_plugins
from mainspring.core.setting import Setting, settle


def backends(console: Console) -> int:
    """Lists every installed backend, its devices or why it is unavailable, and what it can do."""
    plugins = load_plugins()
    table = Table("backend", "verified", "devices, or why not and what to do", "capabilities", title="Backends")
    for name, backend in sorted(plugins.backends.items()):
        table.add_row(name, *_row(backend))
    for name, reason in plugins.refused.items():
        table.add_row(name, "", f"[red]refused[/]: {escape(reason)}", "")
    console.print(table)
    for problem in plugins.problems:
        console.print(f"[red]{escape(problem)}[/]")
    return 0


def matrix(console: Console, *, as_markdown: bool) -> int:
    """Feature by backend, from the last conformance report that each backend's package carries."""
    found = reports(load_plugins().backends.values())
    if as_markdown:
        sys.stdout.write(markdown(found))
    else:
        console.print(table(found))
    return 0


def _row(backend: Backend) -> tuple[str, str, str]:
    found = backend.devices()
    if isinstance(found, Unavailable):
        return "", f"[yellow]unavailable[/]: {escape(found.reason)}\n{escape(found.remedy)}", ""
    devices = "\n".join(f"{d.index}: {d.name} ({d.arch}), {gibibytes(d.total_bytes)}" for d in found)
    capabilities = backend.capabilities(found[0])
    return capabilities.verified, devices, _summary(capabilities)


def _summary(capabilities: Capabilities) -> str:
    kv = capabilities.kv_dtypes or capabilities.compute_dtypes
    facts = {
        "compute": ", ".join(capabilities.compute_dtypes),
        "kv cache": f"{', '.join(kv)}; blocks of {', '.join(map(str, capabilities.block_sizes))}",
        "weights": "; ".join(map(str, capabilities.weight_schemes)) or "unquantized",
        "attention": ", ".join(sorted(capabilities.attention)) or "plain",
        "shapes": capabilities.shapes,
        "graphs": capabilities.graphs,
        "collectives": capabilities.collectives or "one device only",
    }
    return "\n".join(f"{key}: {value}" for key, value in facts.items())


def check(console: Console, config: EngineConfig) -> int:
    """Prints the start-up plan; 0 when it works, 71 with every reason when it cannot."""
    try:
        setting = settle(config)
    except StartupError as error:
        for reason in error.reasons:
            console.print(f"[red]cannot start[/]: {escape(reason)}", soft_wrap=True)
        return 71
    choice, model = setting.choice, setting.model
    capabilities = choice.backend.capabilities(choice.device)
    plan = draft(setting.config, model, capabilities, setting.smallest, setting.speculator)
    _print_plan(console, setting, plan)
    for reason in plan.reasons:
        console.print(f"[red]cannot start[/]: {escape(reason)}", soft_wrap=True)
    return 71 if plan.reasons else 0


def _print_plan(console: Console, setting: Setting, plan: Plan) -> None:
    choice, model, world = setting.choice, setting.model, len(setting.devices)
    ranks = f"{world} x " if world > 1 else ""
    console.print(
        f"{model.architecture} on {choice.backend.name}: {ranks}{choice.device.name} ({choice.reason})", markup=False
    )
    sizes = Table("part", "bytes", "", title="Memory" if world == 1 else "Memory of each rank")
    for part, size in (
        ("device", plan.total_bytes),
        ("usable", plan.usable_bytes),
        ("weights", plan.weight_bytes),
        ("workspace", plan.workspace_bytes),
        ("KV cache", plan.kv_bytes),
    ):
        sizes.add_row(part, f"{size:,}", gibibytes(size))
    console.print(sizes)
    console.print(
        f"{plan.num_blocks} blocks of {plan.kv.block_size} tokens: at most {plan.max_concurrent_tokens:,} concurrent "
        f"tokens; sequences of at most {plan.max_length:,}"
    )
    needs = Table("needs", "wanted", "declared", "", title="Capabilities")
    for need in plan.requirements:
        needs.add_row(need.what, need.needed, need.declared, "[green]ok[/]" if need.remedy is None else "[red]no[/]")
    console.print(needs)
    for note in plan.notes:
        console.print(f"note: {note}", soft_wrap=True, markup=False)


def gibibytes(size: int) -> str:
    """A size for people."""
    return f"{size / 2**30:.2f} GiB"


def main(arguments: Sequence[str]) -> int:
    """`backends`, `backends --matrix [--markdown]`, or `check` with an EngineConfig in JSON."""
    console = Console()
    match arguments:
        case ["backends"]:
            return backends(console)
        case ["backends", "--matrix"]:
            return matrix(console, as_markdown=False)
        case ["backends", "--matrix", "--markdown"]:
            return matrix(console, as_markdown=True)
        case ["check", config]:
            return check(console, msgspec.json.decode(config, type=EngineConfig))
        case _:
            console.print(
                "usage: python -m mainspring.core.commands backends [--matrix [--markdown]] | check ENGINE_CONFIG_JSON"
            )
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
