"""The simulated machines, what they declare, and the options that shape them (`--backend-option key=value`).

The machines of `latency.py` are the devices of this backend: `--device-index` chooses one, and its memory and
capabilities count as a real device's would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec

from mainspring.backends.sim.faults import parse_faults
from mainspring.backends.sim.latency import MACHINES, Machine, step_cost
from mainspring.backends.sim.tokens import EOS_BITS, Vocabulary
from mainspring.core.backend import Backend, Capabilities, Device, DeviceInfo, ExecutorRequest, ProgressCallback
from mainspring.core.batch import Bucket, Buckets
from mainspring.core.config import EngineConfig, ModelConfig
from mainspring.core.errors import BackendError, unknown

if TYPE_CHECKING:
    from mainspring.backends.sim.executor import SimExecutor

_LOADING_PARTS = 20


class SimOptions(msgspec.Struct, frozen=True):
    """What an operator may say about the simulation. Each field is an option of the same name."""

    device: str | None = None
    """Take the latency of this machine, whatever device was opened."""
    speed: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    """So many times as fast as the machine; 0 waits for nothing."""
    overhead: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """Seconds that every step takes besides its work; None takes the machine's."""
    eos: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    """Probability that a sequence ends at a position."""
    vocabulary: str = ""
    """The tokens that come out, as `first-last`, the last one not included; empty: all."""
    quote: int | None = None
    """A token id: a prompt that has it twice is answered with what stands between the last two, and the end."""
    buckets: bool | None = None
    """Take only some shapes of steps; None: as the machine does."""
    budget: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Tokens past which a step is out of memory."""
    verify: bool = True
    """Check the cache's contents against the sequences; `false` is faster."""
    loading: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Seconds that reading the weights takes."""
    fault: str = ""
    """What goes wrong (`faults.py`)."""


class SimBackend(Backend):
    """A rack with one of each machine."""

    name: ClassVar[str] = "sim"
    contract_version: ClassVar[int] = 1
    preference: ClassVar[int] = -10

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock = clock
        self._sleep = sleep

    def devices(self) -> list[DeviceInfo]:
        return [
            DeviceInfo(index, f"simulated {machine.name}", "sim", machine.total_bytes)
            for index, machine in enumerate(MACHINES)
        ]

    def capabilities(self, device: DeviceInfo) -> Capabilities:
        bucketed = MACHINES[device.index].bucketed
        return Capabilities(
            compute_dtypes=("float32", "bfloat16", "float16"),
            kv_dtypes=("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "int8"),
            block_sizes=(16, 1, 2, 4, 8, 32, 64, 128),
            attention=frozenset({"sliding_window", "softcap", "sinks", "alibi", "mla", "encoder"}),
            shapes="bucketed" if bucketed else "dynamic",
            mixes_prefill_and_decode=not bucketed,
            batch_invariant=True,
            asynchronous=True,
            copies_async=True,
        )

    def open(self, index: int, rank: int, world: int, options: EngineConfig) -> Device:
        raise BackendError("the sim backend computes nothing: it has an executor and no device to open")

    def executor(self, request: ExecutorRequest) -> SimExecutor:
        # Imported here, for it brings numpy, which commands that only look at backends do without.
        from mainspring.backends.sim.executor import SimExecutor, SimSpec

        options = parse_options(request.engine.backend_options)
        machine = machine_named(options.device) if options.device else MACHINES[request.device.index]
        bucketed = machine.bucketed if options.buckets is None else options.buckets
        spec = SimSpec(
            name=f"simulated {machine.name}",
            kv=request.kv,
            num_blocks=request.num_blocks,
            vocabulary=_vocabulary(request.model, options),
            cost=step_cost(request.model, request.kv, machine, speed=options.speed, overhead=options.overhead),
            faults=parse_faults(options.fault),
            buckets=make_buckets(request) if bucketed else None,
            budget_tokens=options.budget,
            verify=options.verify,
            quote=options.quote,
        )
        self._load(options.loading, request.progress)
        return SimExecutor(spec, self._clock, self._sleep, request.grammars)

    def _load(self, seconds: float, progress: ProgressCallback) -> None:
        """Takes as long as it was told and says where it is, as a backend that reads weights does."""
        if seconds:
            for done in range(_LOADING_PARTS):
                progress("weights", done, _LOADING_PARTS)
                self._sleep(seconds / _LOADING_PARTS)


def machine_named(name: str) -> Machine:
    """Raises `BackendError` for a name that is not in the table."""
    for machine in MACHINES:
        if machine.name == name:
            return machine
    raise BackendError(unknown("simulated device", name, (machine.name for machine in MACHINES)))


def make_buckets(request: ExecutorRequest) -> Buckets:
    """Powers of two up to what the engine may ask for; a decode has a token a sequence."""
    blocks = -(-request.max_length // request.kv.block_size)
    sequences, tokens = request.engine.max_sequences, request.engine.max_batch_tokens
    return Buckets(
        decode=tuple(Bucket(count, count, blocks) for count in _doubling(sequences)),
        prefill=tuple(Bucket(count, min(count, sequences), blocks) for count in _doubling(tokens, start=16)),
    )


def _doubling(last: int, start: int = 1) -> Iterator[int]:
    count = start
    while count < last:
        yield count
        count *= 2
    yield last


def _vocabulary(model: ModelConfig, options: SimOptions) -> Vocabulary:
    first, last = 0, model.vocab_size
    if options.vocabulary:
        start, _, end = options.vocabulary.partition("-")
        if not (start.isdecimal() and end.isdecimal() and int(start) < int(end) <= model.vocab_size):
            raise BackendError(f"vocabulary={options.vocabulary} is not a range within 0-{model.vocab_size}")
        first, last = int(start), int(end)
    if all(token in model.eos_token_ids for token in range(first, min(last, first + len(model.eos_token_ids) + 1))):
        raise BackendError(f"vocabulary={first}-{last} holds nothing but ends of sequence {model.eos_token_ids}")
    return Vocabulary(model.vocab_size, first, last, model.eos_token_ids, int(options.eos * (1 << EOS_BITS)))


def parse_options(given: Mapping[str, str]) -> SimOptions:
    """Options from the command line's words. Raises `BackendError` with every one that is unknown or unreadable."""
    known = {field.name: field.type for field in msgspec.structs.fields(SimOptions)}
    reasons: list[str] = []
    for name, text in given.items():
        if name not in known:
            reasons.append(unknown("option of the sim backend", name, known))
            continue
        try:
            msgspec.convert(text, known[name], strict=False)
        except msgspec.ValidationError as error:
            reasons.append(f"--backend-option {name}={text} cannot be read: {error}")
    if reasons:
        raise BackendError(reasons)
    return msgspec.convert(dict(given), SimOptions, strict=False)
