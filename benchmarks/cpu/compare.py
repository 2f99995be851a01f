"""The same model on one CPU through Mainspring, transformers' `generate`, llama.cpp and vLLM's CPU build, in turn.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/cpu/compare.py MODEL --gguf FILE [--python PEER=PATH] [--json FILE]

MODEL is a directory with safetensors, which all but llama.cpp read; FILE is llama.cpp's. Peers pin torches that exclude
one another, so each may have an interpreter of its own: `--python vllm=/venvs/vllm/bin/python`. Each runs in a process
(`peer.py`), loads once, and then takes part in every round: one peer after another, `--runs` rounds, so that what else
the machine does meets all of them alike. Told are medians, and how many times as fast Mainspring is, in float32 and in
each of its quantized forms that take part. A peer that cannot be loaded is left out, and the table says so. What is
timed is the same for all: from prompts as token ids, greedy, to the last token; `--output-tokens` of them for every
prompt, whatever the model says.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peer import PEERS, Prompts


@dataclass(frozen=True, slots=True)
class Case:
    """What is timed, and how many tokens it is counted as."""

    name: str
    prompts: Prompts
    output_tokens: int

    @property
    def tokens(self) -> int:
        """Generated ones; of a prefill, those of the prompts."""
        if self.output_tokens > 1:
            return len(self.prompts) * self.output_tokens
        return sum(map(len, self.prompts))

    def suits(self, peer: str) -> bool:
        """Whether the peer's time would say something that another's does not.

        One by one, 32 prompts are 32 times one; a batch of one is not batched; and transformers pads mixed lengths.
        """
        one = len(self.prompts) == 1
        if peer == "transformers":
            return one or self.name.startswith("16")
        if peer == "llama.cpp":
            return not one and len(self.prompts) < 32
        return peer != "transformers batch" or not one


class Peer:
    """A peer in a process of its own."""

    about: dict[str, Any]
    """What it said when it was loaded."""

    def __init__(self, name: str, python: str, settings: Mapping[str, Any]) -> None:
        script = Path(__file__).with_name("peer.py")
        self.name = name
        self._process = subprocess.Popen(
            [python, str(script), name, json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            start_new_session=True,
        )  # fmt: skip

    def load(self) -> bool:
        """Waits until it is loaded; False when it cannot be."""
        self.about = self._answer()
        return "version" in self.about

    def seconds(self, case: Case) -> float:
        """Runs a case."""
        pipe = self._process.stdin
        if pipe is None:
            raise RuntimeError(f"{self.name} has no standard input")
        pipe.write(json.dumps({"prompts": case.prompts, "tokens": case.output_tokens}) + "\n")
        pipe.flush()
        return float(self._answer()["seconds"])

    def close(self) -> None:
        """Lets the process end by itself, then ends what it left: engines have processes of their own."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        answer: dict[str, Any] = json.loads(line) if line else {"error": "its process ended"}
        return answer


def cases(output_tokens: int, vocab_size: int) -> list[Case]:
    """The same prompts for every peer."""
    draws = random.Random(0)

    def prompts(*lengths: int) -> Prompts:
        return [[draws.randrange(vocab_size) for _ in range(length)] for length in lengths]

    mixed = [draws.choice((16, 64, 128, 256)) for _ in range(16)]
    return [
        *(Case(f"decode, {count} at once", prompts(*[32] * count), output_tokens) for count in (1, 8, 16, 32)),
        Case("16 of mixed lengths", prompts(*mixed), output_tokens),
        Case("prefill of 512", prompts(512), 1),
    ]


PAUSE_SECONDS = 1.0
"""Before each time that is taken: a peer that has answered may still tidy up, which is not the next one's time."""


def measure(peers: Sequence[Peer], todo: Sequence[Case], runs: int) -> dict[str, dict[str, list[float]]]:
    """Seconds by case and peer, in rounds; a first round is not counted."""
    taken: dict[str, dict[str, list[float]]] = {case.name: {} for case in todo}
    for round_number in range(runs + 1):
        for case in todo:
            for peer in peers:
                if not case.suits(peer.name):
                    continue
                time.sleep(PAUSE_SECONDS)
                seconds = peer.seconds(case)
                if round_number:
                    taken[case.name].setdefault(peer.name, []).append(seconds)
    return taken


def report(todo: Sequence[Case], taken: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """Prints the medians and gives them back, one entry a case and peer."""
    ours = [name for name in PEERS if name.startswith("mainspring")]
    ours = [name for name in ours if any(name in times for times in taken.values())]
    heads = "".join(f"  {'/ ' + name:>17}" for name in ours)
    print(f"{'case':20} {'peer':19} {'tokens/s':>9} {'median s':>9} {'least s':>9}{heads}")
    rows = []
    for case in todo:
        medians = {name: statistics.median(times) for name, times in taken[case.name].items()}
        for name, median in medians.items():
            ratios = "".join(f"{median / medians[our]:>17.2f} x" for our in ours if our in medians)
            least = min(taken[case.name][name])
            print(f"{case.name:20} {name:19} {case.tokens / median:9.1f} {median:9.3f} {least:9.3f}{ratios}")
            rows.append({"case": case.name, "peer": name, "tokens": case.tokens, "seconds": taken[case.name][name]})
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--gguf", type=Path, help="the model for llama.cpp")
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PATH", help="a peer's interpreter")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS), help="[default: all]")
    parser.add_argument("--cases", nargs="+", default=[""], help="only cases whose name starts so")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def load(arguments: argparse.Namespace, peers: list[Peer]) -> None:
    """Starts the peers, one at a time, and says which there are; adds them to `peers`."""
    pythons = dict(pair.split("=", 1) for pair in arguments.python)
    settings = {key: getattr(arguments, key) for key in ("model", "dtype", "threads")} | {"gguf": str(arguments.gguf)}
    for name in arguments.peers:
        # A path for `vllm` serves `vllm`, one for `llama.cpp` its batches as well.
        peer = Peer(name, pythons.get(name) or pythons.get(name.split()[0]) or sys.executable, settings)
        peers.append(peer)
        if peer.load():
            print(f"{name}: {peer.about['version']}", flush=True)
        else:
            print(f"{name}: left out, {peer.about['error']}", flush=True)
            peers.remove(peer)
            peer.close()


def main() -> None:
    arguments = parse()
    # As an exception, so that peers are ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, {arguments.dtype}", flush=True)
    vocab_size = json.loads((Path(arguments.model) / "config.json").read_text())["vocab_size"]
    todo = [case for case in cases(arguments.output_tokens, vocab_size) if case.name.startswith(tuple(arguments.cases))]
    peers: list[Peer] = []
    try:
        load(arguments, peers)
        rows = report(todo, measure(peers, todo, arguments.runs))
    finally:
        for peer in peers:
            peer.close()
    if arguments.json:
        about = {peer.name: peer.about["version"] for peer in peers}
        settings = {key: str(value) for key, value in vars(arguments).items() if key not in ("python", "json")}
        settings |= {key: Path(settings[key]).name for key in ("model", "gguf")}
        arguments.json.write_text(json.dumps({"settings": settings, "peers": about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
