"""`mainspring quantize` after its flags were read: the calibration text, the progress bar, the last line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import Tokenizer

from mainspring.core.errors import ModelError, StartupError
from mainspring.core.quantizing.run import Method, Order, quantize


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the command line said."""

    model: str
    out: str
    method: Method
    layout: str
    bits: int = 4
    group_size: int = 128
    """-1: one scale an output channel."""
    symmetric: bool = True
    calibration: str | None = None
    samples: int = 128
    length: int = 512


def run(request: Request, console: Console) -> int:
    """0 when the checkpoint is there, 71 with every reason when it cannot be made."""
    columns = (TextColumn("quantizing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    try:
        order = _order(request)
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("blocks", total=None)
            size = quantize(order, lambda done, total: bar.update(task, completed=done, total=total))
    except StartupError as error:
        for reason in error.reasons:
            console.print(f"cannot quantize: {reason}", style="red", markup=False, soft_wrap=True)
        return 71
    console.print(f"{order.out}: {size:,} bytes of {order.scheme}, as {order.layout}", markup=False, soft_wrap=True)
    return 0


def _order(request: Request) -> Order:
    model = Path(request.model)
    if not model.is_dir():
        raise ModelError(f"{model} is no directory of safetensors; a GGUF file cannot be quantized again")
    return Order(
        model=model,
        out=Path(request.out),
        method=request.method,
        layout=request.layout,
        bits=request.bits,
        group_size=request.group_size if request.group_size > 0 else None,
        symmetric=request.symmetric,
        sequences=_sequences(request, model) if request.calibration else [],
    )


def _sequences(request: Request, model: Path) -> list[list[int]]:
    """The text from its beginning, in pieces of equal length."""
    file, vocabulary = Path(str(request.calibration)), model / "tokenizer.json"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"--calibration {file} cannot be read: {error}") from error
    if not vocabulary.exists():
        raise ModelError(f"{model} has no tokenizer.json to read the calibration text with")
    ids = Tokenizer.from_file(str(vocabulary)).encode(text).ids
    length = min(request.length, len(ids))
    pieces = [ids[at : at + length] for at in range(0, len(ids) - length + 1, max(length, 1))]
    if not length or not pieces:
        raise ModelError(f"--calibration {file} holds no text")
    return pieces[: request.samples]


def main(arguments: Sequence[str]) -> int:
    """One argument: a `Request` in JSON."""
    return run(msgspec.json.decode(arguments[0], type=Request), Console())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
