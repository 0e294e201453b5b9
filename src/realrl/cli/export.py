"""`realrl export`: a saved policy as an ONNX graph."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from realrl.cli.acting import add_words, chooser
from realrl.cli.parser import command, say


def add(commands: Any) -> None:
    """`export` and its flags."""
    parser = command(commands, "export", "A saved policy as an ONNX graph, for machines without PyTorch and for speed on a CPU.",
                     "realrl export --policy runs/main/policy --to onnx --out runs/main/policy-onnx", _export)
    parser.add_argument("--policy", type=Path, required=True, metavar="DIR", help="folder of a saved policy, e.g. runs/main/policy")
    add_words(parser)
    parser.add_argument("--to", choices=("onnx",), default="onnx", help="what to make of it (default: onnx)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for policy.onnx and its policy.json (default: DIR-onnx beside the "
                        "policy)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="recordings to compare the graph with the policy on (default: its "
                        "run's)")


def _export(args: argparse.Namespace) -> int:
    from realrl.serve.export import TOLERANCE, export
    source = args.policy.resolve()
    found = export(args.policy, args.out or source.with_name(f"{source.name}-onnx"), args.data, chooser(args))
    say(f"policy: {found.folder}  ({found.megabytes:.1f} MB; run it like any other: realrl evaluate --policy {found.folder})")
    say(f"agrees: the largest difference is {found.difference:.2g} on {found.observations} recorded observations of {found.data} "
        f"(at most {TOLERANCE:g})")
    say("a plan at batch 1 on one thread, p50 / p99: " + ", ".join(f"{who} {p50:.2f} / {p99:.2f} ms" for who, (p50, p99) in
                                                                  found.ms.items()))
    return 0
