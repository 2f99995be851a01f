"""What a `quantization_config` describes, told without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from mainspring.core.backend import WeightScheme

Reader = Literal[
    "gptq", "marlin", "awq", "awq-gemv", "compressed", "fp8", "bitsandbytes", "torchao", "hqq", "mxfp4"
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How compressed-tensors stores the modules that some patterns name."""

    targets: tuple[str, ...]
    """Module names, `re:` and a regular expression of them, or a class of modules (`Linear`), which is any here."""
    scheme: WeightScheme
    packed: Literal["words", "bytes", "no"] = "no"

    def names(self, module: str) -> bool:
        """Whether a module is meant by name."""
        return any(_matches(target, module) for target in self.targets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A format of quantized weights, and what its reader must be told of it."""

    reader: Reader
    scheme: WeightScheme
    """How most of the layers are stored: what memory is planned for, and what a backend is asked about beforehand."""
    zero_offset: int = 0
    """GPTQ: what stored zero points lack."""
    rules: tuple[Rule, ...] = ()
    options: Mapping[str, Any] | None = None

    def rule(self, module: str) -> Rule:
        """The first rule that names a module, else the first that names its class."""
        return next((rule for rule in self.rules if rule.names(module)), self.rules[0])


def schemes_of(scheme: WeightScheme) -> tuple[WeightScheme, ...]:
    """What a weight may be served as, preferred first: the second is more exact, for backends that round nothing."""
    if scheme.activation is None:
        return (scheme,)
    return scheme, replace(scheme, activation=None, activation_granularity=None)


def _matches(target: str, module: str) -> bool:
    if target.startswith("re:"):
        return re.match(target[3:], module) is not None
    return module == target or module.endswith(f".{target}")
