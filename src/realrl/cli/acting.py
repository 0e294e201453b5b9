"""What of a saved policy acts: which of its tasks, in which words, by which head."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from realrl.cli.parser import mistake

if TYPE_CHECKING:
    from realrl.policies.folder import Choose, Saved

HEADS = ("ddim", "flow", "one-step")


def add_words(parser: argparse.ArgumentParser) -> None:
    """--task and --text, of who is told what to do."""
    parser.add_argument("--task", metavar="TASK", help="which of a flow policy's tasks it does (default: the one of its folder)")
    parser.add_argument("--text", metavar="WORDS", help="what a flow policy is told to do (default: the first text of its task)")


def add_head(parser: argparse.ArgumentParser) -> None:
    """--head."""
    parser.add_argument("--head", choices=HEADS, help="which product acts (default: as it was saved)")


def chooser(args: argparse.Namespace) -> Choose:
    """What makes of a loaded policy the one that --task, --text and --head ask for. It raises RealrlError where there is no such."""
    def choose(policy: Saved, trained_on: str) -> tuple[Saved, str]:
        from realrl.policies.folder import for_task
        task = args.task or trained_on
        if args.task and policy.KIND == "flow":
            policy = policy.told(args.task)  # raises for one that it does not know
        elif task != trained_on:
            raise mistake()(f"--task {task}: a {policy.KIND} policy does one task, {trained_on}: leave it out")
        policy = for_task(policy, task, args.text)
        return (product(policy, args.policy, args.head) if hasattr(args, "head") else policy), task
    return choose


def product(policy: Saved, name: object, head: str | None, sampler: str | None = None) -> Saved:
    """What a policy deploys, as --head and --sampler say. name: of it, for the message. Raises RealrlError for one that it has not."""
    if policy.KIND == "flow":
        if head == "ddim" or sampler:
            raise mistake()(f"{name}: a flow policy acts with head flow or one-step and has one sampler; leave --sampler out")
        if head == "one-step" and not policy.distilled:
            raise mistake()(f"{name}: its one-step head was never trained; use --head flow, or realrl train flow --one-step")
        return policy.with_head(head or policy.head)  # type: ignore[arg-type]
    if policy.KIND != "diffusion":
        if head or sampler:
            raise mistake()(f"{name}: a {policy.KIND} policy has but one way to act; leave --head and --sampler out")
        return policy
    if head == "flow":
        raise mistake()(f"{name}: a diffusion policy has the heads ddim and one-step; leave --head flow out")
    if head == "one-step" and not policy.distilled:
        raise mistake()(f"{name}: its one-step head was never trained; use --head ddim, or run the stage one-step on it")
    policy = policy.with_head(head or policy.head)  # type: ignore[arg-type]
    if sampler and policy.head != "ddim":
        raise mistake()(f"--sampler {sampler} is about the ddim head, {name} acts with one step: add --head ddim")
    return policy.with_sampler(sampler) if sampler else policy  # type: ignore[arg-type]
