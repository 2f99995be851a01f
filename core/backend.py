"""THE CONTRACT between the core and a backend, version 1. One file; this is all that a backend's author must read.

A backend is two classes. `Backend` answers questions about a machine without touching it and is what a plugin
registers; `Device` is one opened device. Abstract methods are required. Every other method has a default, which is the
reference in the core (`core/ops`, plain torch) or "nothing to do", so the smallest backend is `devices`,
`capabilities`, `open`, `memory`, `allocate_kv` and `synchronize`: see `examples/backend_plugin`. A machine whose
compiler owns the whole model overrides `Backend.executor` instead and needs no ops at all: see `backends/sim`.

Legend: T packed tokens of a step, R sequences of a step, H query heads, K kv heads, D head dim, B blocks a sequence may
span, S tokens a block holds, V vocabulary, L layers. Integer tensors are int32 unless said otherwise.

This file imports no torch at run time, so that a backend without torch can implement it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from mainspring.core.batch import Batch, Bucket, Buckets, StepResult
from mainspring.core.config import Dtype, EngineConfig, KVDtype, ModelConfig

if TYPE_CHECKING:
    import torch

    from mainspring.core.grammar.store import Grammars

CONTRACT_VERSION = 1
"""Raised when a change would break a backend written for the version before. A backend states the number it was
written for as a literal; one that states another is refused at load."""


# --- data ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One device that a backend can open."""

    index: int
    name: str
    """As the vendor prints it, e.g. `NVIDIA H100 80GB HBM3`."""
    arch: str
    """What kernels are built for, e.g. `sm_90`, `gfx942`, `x86_64-avx512`."""
    total_bytes: int
    uuid: str = ""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Why a backend cannot run here, and what to do about it. Both are one sentence."""

    reason: str
    remedy: str


AttentionFeature = Literal["sliding_window", "softcap", "sinks", "alibi", "mla", "encoder"]


GGUFPacking = Literal["q4_0", "q4_1", "q8_0", "q4_k", "q5_k", "q6_k"]
GGUF_PACKINGS: tuple[GGUFPacking, ...] = ("q4_0", "q4_1", "q8_0", "q4_k", "q5_k", "q6_k")
"""ggml's block layouts that weights may be kept in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightScheme:
    """How a linear layer's weight is stored and what its activations become: a closed record, never a method name.

    GPTQ, AWQ, Marlin, EETQ, bitsandbytes, FP8, compressed-tensors and GGUF are *readers* in the core that produce it.
    """

    weight: Literal["float32", "float16", "bfloat16", "int8", "int4", "float8_e4m3fn", "nf4", "fp4", "mxfp4", "nvfp4"]
    bits: int
    group_size: int | None = None
    """Input features that share a scale; None: one scale an output channel; 0: one a tensor."""
    group_rows: int = 1
    """Output features that share it, too: scales of blocks of `group_rows` times `group_size`."""
    scattered: bool = False
    """Input features of a group do not lie side by side: `group_index` names each one's group (act-order)."""
    symmetric: bool = True
    activation: Literal["float32", "float16", "bfloat16", "int8", "float8_e4m3fn"] | None = None
    """None leaves activations in the compute dtype."""
    activation_granularity: Literal["tensor", "token", "block"] | None = None
    packing: Literal["plain"] | GGUFPacking = "plain"
    """`plain` is one element a value; the backend packs at load as it likes. GGUF's blocks come as raw rows of bytes,
    `weight` [N, row bytes] uint8, see `core.ops.gguf_blocks`; `bits`, 5 and 6 too, are a code's."""

    def __str__(self) -> str:
        """In words, e.g. `int4 in groups of 32, asymmetric`."""
        if self.packing in GGUF_PACKINGS:
            return f"{self.packing} blocks" + (f", {self.activation} activations" if self.activation else "")
        group = f" in groups of {self.group_size}" if self.group_size else ""
        if self.group_rows > 1:
            group = f" in blocks of {self.group_rows} x {self.group_size}"
        symmetry = "" if self.symmetric else ", asymmetric"
        order = ", groups in any order" if self.scattered else ""
        activations = f", {self.activation} activations" if self.activation else ""
        return f"{self.weight}{group}{symmetry}{order}{activations}"


def unquantized(dtype: Dtype) -> WeightScheme:
    """The scheme of a plain floating-point weight."""
    return WeightScheme(weight=dtype, bits=32 if dtype == "float32" else 16)


@dataclass(frozen=True, slots=True)
class Verdict:
    """An answer with its reason; the reason is shown to the operator when `ok` is False."""

    ok: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a device can do, declared before anything is loaded. The core asks this and never a device's name."""

    compute_dtypes: tuple[Dtype, ...]
    """Preferred first."""
    kv_dtypes: tuple[KVDtype, ...]
    """Preferred first; empty means "as the compute dtype"."""
    weight_schemes: tuple[WeightScheme, ...] = ()
    """Quantized schemes in the backend's own kernels; unquantized weights always work."""
    block_sizes: tuple[int, ...] = (16,)
    """Tokens a KV block may hold, preferred first."""
    head_dims: tuple[int, ...] = ()
    """Head dims that attention takes; empty means any."""
    attention: frozenset[AttentionFeature] = frozenset()
    shapes: Literal["dynamic", "bucketed"] = "dynamic"
    """`bucketed`: whatever runs has a shape of `Device.buckets`, what chooses tokens too. `dynamic` devices may have
    buckets as well, for the steps that they capture."""
    mixes_prefill_and_decode: bool = True
    graphs: Literal["none", "capture", "ahead_of_time"] = "none"
    collectives: str | None = None
    """Name of the torch.distributed backend (`nccl`, `gloo`, `hccl`, `xccl`); None: one device only."""
    ranks_share_device: bool = False
    """Several ranks may open one device and divide its memory, as processes on one host do. False: a device a rank."""
    samples_in_program: bool = False
    """The programs of buckets choose tokens, too: the op `sample` runs inside, told that any row may want any stage but
    typical_p, so a stage must cost next to nothing where no row wants it. Rows that want more than `sample` gives them
    there (penalties, logit_bias, log-probabilities) are chosen for again behind the program."""
    batch_invariant: bool = False
    """A row's result does not depend, bit for bit, on what else is in the batch."""
    asynchronous: bool = False
    """Ops return before they finish (a stream, a lazy graph). False: the executor runs steps on a thread of its own, so
    that the host still plans step N+1 while the device runs step N."""
    copies_async: bool = False
    """Copies between pinned host memory and the device overlap with compute. An `asynchronous` device without them
    gives a step's results when they are asked for, not when the step is enqueued."""
    default_memory_fraction: float = 0.9
    """Share of a device's memory that serving may take when the operator names none."""
    verified: str = "L0"
    """How far this backend has been verified, L0 (detected) to L5 (on the hardware): shown by `mainspring backends`."""


@dataclass(frozen=True, slots=True)
class KVSpec:
    """Shape of the paged KV cache of one rank."""

    layers: int
    heads: int
    """K: kv heads of this rank."""
    head_dim: int
    dtype: KVDtype
    block_size: int

    def block_bytes(self) -> int:
        """Bytes of one block over all layers, keys and values."""
        return 2 * self.layers * self.block_size * self.heads * self.head_dim * KV_DTYPE_BYTES[self.dtype]


KV_DTYPE_BYTES: Mapping[KVDtype, int] = {
    "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1, "int8": 1,
}  # fmt: skip

KVCache = Any
"""Opaque to the core: what `allocate_kv` returned and the backend's own ops take back. Backends that want the reference
attention return `core.ops.attention.PagedKV`."""

AttentionPlan = Any
"""Opaque: what `prepare_attention` returned. The default plan is the `AttentionMetadata` itself."""


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Where each sequence's tokens stand, for one step. Rows that decode one token come first. Seven fields, no more.

    Padding is inert: a padded row has `kv_length` 0 and an empty query range, a padded token has slot -1, and block 0
    belongs to nobody, so padded block-table entries may point there.
    """

    query_start: torch.Tensor
    """[R+1] First packed token of each row; row r computes tokens query_start[r] to query_start[r+1]."""
    kv_length: torch.Tensor
    """[R] Tokens of the row's sequence after this step, those of the step included."""
    block_table: torch.Tensor
    """[R, B] Blocks of each row, in order; entries past the sequence's end are 0."""
    slot: torch.Tensor
    """[T] int64. Where each token's key and value go: block * S + offset; -1 writes nothing."""
    max_query: int
    max_kv: int
    """Host integers: the largest query range and kv_length. In a captured program they are the bucket's."""
    num_decodes: int


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A linear layer's weights as the backend wants them. `data` is opaque to the core."""

    scheme: WeightScheme
    in_features: int
    out_features: int
    data: Any
    bias: torch.Tensor | None = None


class Event(Protocol):
    """A point in the device's queue of work."""

    def record(self) -> None:
        """Puts the point behind all work enqueued so far. Called once."""

    def query(self) -> bool:
        """Whether the device has come past it. Never waits."""

    def synchronize(self) -> None:
        """Returns when the device has come past it; from any thread."""


class Communicator(Protocol):
    """Collectives among the ranks that it was made for. All of them call the same ones in the same order, with tensors
    of one shape and dtype on the device; `source` and `to` are ranks of the whole server.
    """

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, the same bits on each; x may be overwritten by it."""

    def all_gather(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """The ranks' tensors side by side along `dim`, in rank order, copied bit for bit."""

    def reduce_scatter(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """This rank's share along `dim` of the sum over ranks; `dim` divides by their number."""

    def broadcast(self, x: torch.Tensor, source: int) -> torch.Tensor:
        """The tensor of rank `source`; on the others x is overwritten by it."""

    def all_to_all(self, x: torch.Tensor) -> torch.Tensor:
        """Share i of dimension 0 goes to the i-th rank; the result holds what each sent here, in rank order."""

    def send(self, x: torch.Tensor, to: int) -> None:
        """Returns when x may be overwritten."""

    def receive(self, x: torch.Tensor, source: int) -> torch.Tensor:
        """Fills x with what `source` sends, and returns it."""

    def close(self) -> None:
        """Gives back what it holds. Called once."""


class Pending(Protocol):
    """A step that was enqueued."""

    def done(self) -> bool:
        """Whether `result` would return, or raise, at once."""

    def result(self) -> StepResult:
        """Waits for the step. Raises `DeviceOutOfMemory` when the step did not fit; the executor stays usable.

        Any other exception means that the device is lost and the engine ends.
        """


class Executor(Protocol):
    """Runs batches. The engine sees nothing else of a device or a model. Batches run in the order they were given."""

    def execute(self, batch: Batch) -> Pending:
        """Enqueues one step and returns at once."""

    def kv_spec(self) -> KVSpec:
        """Shape of the KV cache."""

    def num_blocks(self) -> int:
        """Blocks of the KV cache, block 0 included."""

    def buckets(self) -> Buckets | None:
        """Shapes that `execute` takes; None for any."""

    def device_name(self) -> str:
        """As the vendor prints it."""

    def step_seconds(self, batch: Batch) -> float:
        """A generous bound on the step's duration: past it the engine counts as hung."""

    def close(self) -> None:
        """Drops what has not run and gives the device back. Called once."""


ProgressCallback = Callable[[str, int, int], None]
"""Called with (phase, done, total) during start-up."""

Program = Callable[..., Any]

AddRmsNorm = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor", float], "tuple[torch.Tensor, torch.Tensor]"]
"""`core.ops.norm.add_rms_norm`: (x, residual, weight, epsilon) -> (the normed sum, the sum)."""


@dataclass(frozen=True, slots=True)
class ShapeLimits:
    """The largest step the scheduler wants to emit; `Device.buckets` makes its ladder up to it."""

    tokens: int
    sequences: int
    blocks: int
    """Blocks of the longest sequence."""
    choices: int = 0
    """Tokens that a step chooses where sequences may be guessed ahead, several a sequence; 0: one a sequence."""


@dataclass(frozen=True, slots=True)
class ExecutorRequest:
    """What `Backend.executor` gets to build an executor that owns the whole model."""

    model: ModelConfig
    engine: EngineConfig
    max_length: int
    kv: KVSpec
    num_blocks: int
    """KV blocks that the plan arrived at, block 0 included."""
    device: DeviceInfo
    progress: ProgressCallback = field(default=lambda phase, done, total: None)
    grammars: Grammars | None = None
    """What requests' grammars are read by. An executor that holds sequences to them makes `Guides` of it; others leave
    it alone, and requests with a grammar are refused."""


# --- calls -----------------------------------------------------------------------------------------------------------


class Backend(ABC):
    """Group A: identity. Instances are made by a plugin's `mainspring_backends` hook and import no vendor SDK."""

    name: ClassVar[str]
    """What `--backend` takes: lower case, no spaces."""

    contract_version: ClassVar[int]
    """The CONTRACT_VERSION this backend was written for, as a literal number."""

    preference: ClassVar[int] = 0
    """`--backend auto` takes the available backend with the highest: accelerators 100, cpu 10; simulators stay below 0,
    which auto never takes."""

    @abstractmethod
    def devices(self) -> list[DeviceInfo] | Unavailable:
        """The devices that can be opened here. Never raises and imports nothing heavy."""

    @abstractmethod
    def capabilities(self, device: DeviceInfo) -> Capabilities:
        """What the device can do. Pure data; asked before anything is loaded."""

    @abstractmethod
    def open(self, index: int, rank: int, world: int, options: EngineConfig) -> Device:
        """Opens a device for one rank of `world`. Here the vendor SDK is imported.

        Raises `BackendError` for an option in `options.backend_options` that the backend does not know.
        """

    def executor(self, request: ExecutorRequest) -> Executor | None:
        """An executor that owns the whole model, for machines whose compiler does; None takes the core's own."""
        return None


class Device(ABC):
    """Groups B to F: one opened device."""

    torch_device: str
    """Where the core places tensors: `cpu`, `cuda:0`, `hpu:0`, `xla:0`."""

    # B. Memory

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """(free, total) bytes now."""

    @abstractmethod
    def allocate_kv(self, spec: KVSpec, num_blocks: int) -> KVCache:
        """The paged KV cache; the backend owns its layout. `PagedKV.allocate` is the reference layout."""

    @abstractmethod
    def synchronize(self) -> None:
        """Returns when all enqueued work has finished."""

    def copy_blocks(self, kv: KVCache, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies block contents (source, destination) in all layers; pairs are independent of each other."""
        kv.copy_blocks(pairs)

    def swap_blocks(self, kv: KVCache, host: KVCache, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies blocks of `kv` to blocks of `host` (device to host), or back when the arguments are exchanged."""
        host.copy_blocks_from(kv, pairs)

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Host memory that the device copies from and to without staging; plain memory by default.

        The caller may let go of it while a copy is under way, as it may of torch's own pinned memory.
        """
        import torch

        return torch.empty(tuple(shape), dtype=dtype)

    def event(self) -> Event:
        """A new event on the queue that steps run on. The default suits devices whose ops finish before they return."""
        return _Finished()

    def peak_bytes(self) -> int:
        """Most bytes in use since the last call, 0 where the device cannot tell."""
        return 0

    def close(self) -> None:
        """Gives the device back. Called once, also after an error."""

    # C. Ops

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """Overrides by name, each with the signature of its reference: the fields of `core.ops.Ops`.

        Read once, when the model is built. A name that the core does not know is refused.
        """
        return {}

    def prepare_attention(self, metadata: AttentionMetadata, kv: KVCache) -> AttentionPlan:
        """Called once a step, before the model; the result is what the `attention` op receives as `plan`."""
        return metadata

    # D. Quantized matmuls. Unquantized linears pass here too, so a backend may prepack those as well.

    def supports(self, scheme: WeightScheme, in_features: int, out_features: int) -> Verdict:
        """Whether `pack` takes such a layer. Asked for each layer at start-up, before weights are read."""
        if scheme.weight in ("float32", "float16", "bfloat16"):
            return Verdict(True)
        return Verdict(False, f"this backend has no kernel for {scheme.bits}-bit {scheme.weight} weights")

    def pack(self, scheme: WeightScheme, tensors: Mapping[str, torch.Tensor]) -> PackedLinear:
        """Takes a layer's tensors (`weight` [N, K], maybe `bias`, `scales`, `zeros`, ...) into the backend's form."""
        weight = tensors["weight"]
        return PackedLinear(scheme, weight.shape[1], weight.shape[0], weight, tensors.get("bias"))

    def quantized_linear(self, x: torch.Tensor, packed: PackedLinear) -> torch.Tensor:
        """x[T, K] times the packed weight, plus its bias: [T, N] in x's dtype."""
        import torch

        return torch.nn.functional.linear(x, packed.data, packed.bias)

    def reads_rows(self, scheme: WeightScheme) -> bool:
        """Whether `rows` takes what `pack` made under this scheme: then tables of embeddings stay quantized, too."""
        return False

    def rows(self, index: torch.Tensor, packed: PackedLinear, dtype: torch.dtype) -> torch.Tensor:
        """Rows index[T] of a packed weight as numbers: [T, K] in `dtype`. Called only where `reads_rows` said so."""
        raise NotImplementedError(f"{type(self).__name__} reads no rows of packed weights")

    def quantize_activation(self, x: torch.Tensor, scheme: WeightScheme) -> tuple[torch.Tensor, torch.Tensor]:
        """x[T, K] in the scheme's activation dtype, and its scales."""
        raise NotImplementedError(f"{type(self).__name__} quantizes no activations")

    # E. Collectives

    def communicator(self, ranks: Sequence[int]) -> Communicator:
        """Collectives among `ranks`, who call this at once and nobody else. The default is torch.distributed under
        `Capabilities.collectives`; a backend may build on that class.
        """
        from mainspring.core.parallel.communicator import TorchCommunicator

        return TorchCommunicator(ranks)

    def summed_norm(self, group: Communicator, add_rms_norm: AddRmsNorm) -> AddRmsNorm:
        """`add_rms_norm` of an x that is this rank's part of a sum over `group`: for machines that can do both at once.

        x may be overwritten. All ranks must get the same numbers, bit for bit. The default sums, then norms.
        """
        return lambda x, residual, weight, epsilon: add_rms_norm(group.all_reduce(x), residual, weight, epsilon)

    # F. Execution: a device is a cache of programs keyed by a shape bucket

    def buckets(self, limits: ShapeLimits) -> Buckets | None:
        """The shapes that programs will be built for, up to `limits`; None takes any shape as it comes.

        `Buckets.prefill` may be empty: decodes then run in the programs of their buckets, all other steps in the one
        program of any shape (`compile` with bucket None). `Capabilities.shapes` stays `dynamic` there; `bucketed` says
        that nothing at all may run in another shape, sampling included. With `Buckets.any_shape` the prefill family is
        a choice, too: what fits no bucket runs in its own shape.
        """
        return None

    def compile(self, program: Program, bucket: Bucket | None) -> Program:
        """Makes `program` fast for one bucket (None: for steps of any shape). The default runs it as it is.

        It is called as `program(inputs, plan)`: `core.execution.inputs.StepTensors` and what `prepare_attention`
        returned. It returns the final hidden states [T, E]; logits [N, V], None when no row of the step chooses a
        token; and what was chosen, [2, N] int32: token ids, which the token table has got as well, and whether a row's
        logits were not finite. The last is None but for buckets under `samples_in_program`. A bucket's `inputs` are the
        same tensors at every step, so a captured program finds each step's integers where it was captured (new ones
        each step where graphs are `ahead_of_time`: such programs take arguments); what it returns may be overwritten
        when any program runs next.
        """
        return program

    def compilations(self) -> int:
        """Programs that the device's compiler has built so far, 0 where none is or nobody can tell.

        For machines that compile behind the caller's back (lazy graphs). After warm-up it must stand still: the
        conformance kit compares.
        """
        return 0

    def flush(self) -> None:
        """Hands over the work given so far as one piece, on devices that gather ops into a graph and run it later.

        Steps of one bucket are cut at the same places, so that pieces recur and each is compiled once. Nothing to do
        where ops run as they come.
        """

    def artifact_key(self) -> str:
        """Names everything that a compiled program depends on besides model and bucket (driver, compiler, arch)."""
        return ""


class _Finished:
    """The event of a device whose ops finish before they return."""

    def record(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass
