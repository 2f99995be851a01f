"""A stand-in for a vendor's device: torch's Python device (PrivateUse1) under the vendor's name, host memory behind it.

It runs the ops of an allow-list and refuses all others; it counts what a vendor's compiler would have to compile: an
op's shapes, dtypes and numbers where ops run as they come, a whole sequence of them where a graph is gathered. What it
cannot show: speed, memory, a vendor's numerics, and whether the compiler takes a graph. One device a process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

HOST = torch.device("cpu")
GIB = 2**30


class StandInTensor(torch.Tensor):
    """A tensor of the device; `host` holds its values."""

    host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl


def on_device(host: Tensor) -> StandInTensor:
    """A tensor of the device over these values; views of them alias."""
    # A view of a weight that was made outside of inference mode must be no inference tensor inside.
    with torch.inference_mode(False):
        tensor: Any = torch._C._acc.create_empty_tensor(tuple(host.shape), host.dtype)
    tensor.__class__ = StandInTensor
    tensor.host = host
    return tensor  # type: ignore[no-any-return]


def on_host(value: Any) -> Any:
    """The same with values in place of the device's tensors."""
    if isinstance(value, StandInTensor):
        return value.host
    if isinstance(value, torch.device):
        return HOST
    if isinstance(value, tuple | list):
        return [on_host(part) for part in value]
    return value


@dataclass(frozen=True, slots=True)
class Kind:
    """What an op's schema says, read once: a step calls hundreds of ops."""

    name: str
    signature: str
    tensors: tuple[bool, ...]
    """Of each argument, whether it is a tensor, for which torch may hand over a number."""
    is_view: bool


@cache
def kind_of(op: Any) -> Kind:
    """Of an overload."""
    schema = op._schema
    return Kind(
        schema.name.removeprefix("aten::"),
        str(op),
        tuple(str(argument.type) == "Tensor" for argument in schema.arguments),
        any(part.alias_info is not None and not part.alias_info.is_write for part in schema.returns),
    )


class StandIn:
    """The one device of this process."""

    def __init__(self, name: str, allowed: Iterable[str], *, lazy: bool = False, module: object = None) -> None:
        self.name = name
        self.allowed = frozenset(allowed)
        self.lazy = lazy
        self.calls: Counter[str] = Counter()
        self.compiled: set[Any] = set()
        self._gathered: list[Any] | None = [] if lazy else None
        self._recording: list[Callable[[], None]] | None = None
        self._libraries = _install(self, module or DeviceModule())

    @property
    def compilations(self) -> int:
        """Graphs, or single ops, that are not like any before."""
        return len(self.compiled)

    def flush(self) -> None:
        """Ends a graph of a lazy device."""
        if self.lazy and self._gathered:
            self.compiled.add(tuple(self._gathered))
            self._gathered = []

    @contextmanager
    def graph(self) -> Iterator[None]:
        """All ops inside are compiled as one."""
        before, self._gathered = self._gathered, []
        try:
            yield
            self.compiled.add(tuple(self._gathered))
        finally:
            self._gathered = before

    @contextmanager
    def recording(self) -> Iterator[list[Callable[[], None]]]:
        """The ops inside, each as a call that repeats it on the same memory."""
        self._recording = []
        try:
            yield self._recording
        finally:
            self._recording = None

    def run(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        """One op."""
        kind = kind_of(op)
        name = kind.name
        # The functional form, the one in place and the one into a given tensor are one op to a vendor's list.
        if name not in self.allowed and name.removesuffix("_") not in self.allowed:
            raise NotImplementedError(f"stand-in for {self.name}: aten::{name} is not among the ops that it may run")
        self.calls[name] += 1
        self._compile(op, args, kwargs)
        host_args = _numbers_as_tensors(kind, on_host(args))
        host_kwargs = {key: on_host(value) for key, value in kwargs.items()}
        result = op(*host_args, **host_kwargs)
        if self._recording is not None:
            self._recording.append(_repetition(op, host_args, host_kwargs, result))
        mine = {id(x.host): x for x in (*args, *kwargs.values()) if isinstance(x, StandInTensor)}
        return _returned(result, mine)

    def own(self, name: str, behaviour: Callable[..., Any], *given: Any) -> Any:
        """An op of the vendor's own, told by what it does to values."""
        self.calls[name] += 1
        signature = (name, _signature(given))
        if self._gathered is not None:
            self._gathered.append(signature)
        else:
            self.compiled.add(signature)
        host_args = on_host(given)
        result = behaviour(*host_args)
        if self._recording is not None:
            self._recording.append(_repetition(behaviour, host_args, {}, result))
        return _returned(result, {})

    def copy(self, source: Tensor, target: Tensor) -> Tensor:
        """Between host and device, or on the device from dtype to dtype."""
        if not isinstance(source, StandInTensor) and source.device.type == self.name:
            raise RuntimeError(f"torch made a tensor of {self.name} by itself: add the op that did to `_made_by_torch`")
        both = isinstance(source, StandInTensor) and isinstance(target, StandInTensor)
        if both:
            self._compile(torch.ops.aten.copy_.default, (source, target), {})
        elif isinstance(source, StandInTensor):
            self.flush()
        mine, theirs = on_host(target), on_host(source)
        mine.copy_(theirs)
        if both and self._recording is not None:
            self._recording.append(lambda: mine.copy_(theirs) and None)
        return target

    def _compile(self, op: Any, args: Any, kwargs: Any) -> None:
        kind = kind_of(op)
        signature = (kind.signature, _signature(args), _signature(list(kwargs.items())))
        if self._gathered is not None:
            self._gathered.append(signature)
        elif not kind.is_view:
            self.compiled.add(signature)


def _numbers_as_tensors(kind: Kind, args: Any) -> Any:
    """torch hands numbers to ops of tensors, where it has wrapped them for its own."""
    return [
        torch.tensor(value) if tensor and isinstance(value, bool | int | float) else value
        for tensor, value in zip(kind.tensors, args, strict=False)
    ]


def _signature(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, tuple | list):
        return tuple(_signature(part) for part in value)
    return value


def _returned(result: Any, mine: dict[int, StandInTensor]) -> Any:
    if isinstance(result, Tensor):
        return mine.get(id(result)) if id(result) in mine else on_device(result)
    if isinstance(result, tuple | list):
        return tuple(_returned(part, mine) for part in result)
    return result


def _repetition(op: Any, args: Any, kwargs: Any, result: Any) -> Callable[[], None]:
    """The op once more, its results where they were; those that alias an argument are there already."""

    def repeat() -> None:
        for old, new in zip(_tensors(result), _tensors(op(*args, **kwargs)), strict=True):
            if old.data_ptr() != new.data_ptr():
                old.copy_(new)

    return repeat


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [x for part in value for x in _tensors(part)] if isinstance(value, tuple | list) else []


class DeviceModule:
    """`torch.<name>`, as far as torch itself asks for it."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def device_count(self) -> int:
        return 1


KEY = "PrivateUse1"


def _install(device: StandIn, module: object) -> tuple[torch.library.Library, ...]:
    """Makes torch know the device. The libraries must live as long as it does."""
    _setup_privateuseone_for_python_backend(device.name, module)
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(device.run, KEY)
    aten = torch.library.Library("aten", "IMPL")
    aten.impl("_copy_from", lambda source, target, non_blocking=False: device.copy(source, target), KEY)
    aten.impl("_local_scalar_dense", lambda x: x.host.item(), KEY)
    aten.impl("empty.memory_format", _empty, KEY)
    aten.impl("empty_strided", lambda size, stride, **options: _empty(size, **options), KEY)
    for name in dict.fromkeys(_made_by_torch()):
        op = _overload(name)
        if op is not None:
            aten.impl(name, _runner(device, op), KEY)
    return everything, aten


def _empty(size: Any, *, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
    return on_device(torch.empty(size, dtype=dtype))


def _runner(device: StandIn, op: Any) -> Callable[..., Any]:
    wanted = {argument.name for argument in op._schema.arguments}

    def run(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("pin_memory", None)
        if "device" in wanted:
            kwargs["device"] = HOST
        return device.run(op, *args, **kwargs)

    return run


def _made_by_torch() -> Iterator[str]:
    """Ops whose results torch would otherwise make by itself, in C++: ranges, reshapes, views, and structured ops."""
    yield from ("arange", "arange.start", "arange.start_step", "reshape", "contiguous")
    yield from ("scaled_dot_product_attention", "native_layer_norm", "logsumexp", "_unsafe_view", "repeat")
    structured = "CompositeExplicitAutogradNonFunctional"
    for key in ("CompositeExplicitAutograd", structured):
        for full in torch._C._dispatch_get_registrations_for_dispatch_key(key):
            name = full.removeprefix("aten::")
            op = _overload(name) if full.startswith("aten::") else None
            if op is not None and (key == structured or kind_of(op).is_view):
                yield name


def _overload(name: str) -> Any:
    base, _, overload = name.partition(".")
    packet = getattr(torch.ops.aten, base, None)
    return None if packet is None else getattr(packet, overload or "default", None)
