"""Which processors an engine has, and whether what a request asks of them can be done. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from mainspring.core.errors import ErrorKind, RequestError, unknown
from mainspring.core.request import LogitsProcessing, Parameter, ProcessorForm


class ProcessorForms:
    """Filled by the executor that applies them; empty where there is none that does."""

    def __init__(self) -> None:
        self.offered: tuple[ProcessorForm, ...] = ()

    def check(self, asked: Sequence[LogitsProcessing]) -> None:
        """Raises `RequestError` (INVALID) for a processor that is not there, is named twice, or gets wrong numbers."""
        if not asked:
            return
        forms = {form.name: form for form in self.offered}
        names = [each.name for each in asked]
        for each in asked:
            if each.name not in forms:
                raise RequestError(ErrorKind.INVALID, unknown("logits processor", each.name, forms))
            if names.count(each.name) > 1:
                raise RequestError(ErrorKind.INVALID, f"the logits processor `{each.name}` is named twice")
            _check_values(each, forms[each.name].parameters)


def _check_values(asked: LogitsProcessing, parameters: Sequence[Parameter]) -> None:
    if len(asked.values) != len(parameters):
        raise RequestError(
            ErrorKind.INVALID,
            f"the logits processor `{asked.name}` takes {len(parameters)} numbers, not {len(asked.values)}",
        )
    for value, parameter in zip(asked.values, parameters, strict=True):
        if (problem := parameter.problem(value)) is not None:
            raise RequestError(ErrorKind.INVALID, f"`{parameter.name}` of `{asked.name}` {problem}")
