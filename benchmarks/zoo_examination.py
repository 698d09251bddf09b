"""Run one network through every step of the suite, and check each step by independent measurements."""

from __future__ import annotations

import copy
import dataclasses
import re
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo_networks import Network
from common.compression import compress, load_compressed, save_compressed
from common.deploy import export_onnx
from common.network import profile
from common.network.modes import evaluating, hooked
from common.network.shapes import trace_layers
from common.planning import Budget, Fixed, RankPlan, plan_ranks
from common.planning.costs import plan_cost
from common.planning.decompositions import Decompositions

COMMON = Path(__file__).resolve().parent.parent / "common"
SHARE = 0.5
TOLERANCE, TOLERANCE_IN_DOUBLE = 1e-3, 1e-6
LEAST = re.compile(r"least that can be kept is params=(\d\.\d+)")
Record = dict[str, Any]


class WrongError(Exception):
    """A measurement contradicts what the suite promises."""


def expect(condition: bool, message: str) -> None:
    """Raise a ``WrongError`` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise WrongError(message)


def leaves(value: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists, dicts and dataclasses, in order."""
    if isinstance(value, Tensor):
        return [value]
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, Mapping)):
        value = vars(value)
    parts = list(value.values()) if isinstance(value, Mapping) else value
    return [leaf for part in parts for leaf in leaves(part)] if isinstance(parts, (list, tuple)) else []


def outputs(network: nn.Module, x: Tensor, layers: tuple[str, ...] = ()) -> list[Tensor]:
    """Return the network's outputs in evaluation mode, followed by the output of each call of ``layers``."""
    found: list[Tensor] = []
    handles = [
        network.get_submodule(name).register_forward_hook(lambda m, i, o: found.append(o.detach().clone()))
        for name in layers
    ]
    torch.manual_seed(0)
    with hooked(handles), evaluating(network), torch.no_grad():
        return [*(leaf.detach().clone() for leaf in leaves(network(x))), *found]


def difference(one: list[Tensor], other: list[Tensor]) -> float:
    """Return the largest difference relative to each tensor's largest value; infinite for other shapes or NaN."""
    if [tensor.shape for tensor in one] != [tensor.shape for tensor in other]:
        return float("inf")
    errors = [
        float((a.double() - b.double()).abs().max() / a.double().abs().max().clamp_min(1e-12))
        for a, b in zip(one, other, strict=True)
        if a.numel()
    ]
    return max((error if error == error else float("inf") for error in errors), default=0.0)


def randomize_constants(network: nn.Module) -> nn.Module:
    """Replace constant initial values by random ones in place, so that every layer affects the output."""
    with torch.no_grad():
        for tensor in network.parameters():
            if tensor.is_floating_point() and tensor.numel() and bool((tensor == tensor.flatten()[0]).all()):
                zero = not tensor.flatten()[0]
                if tensor.numel() == 1:
                    tensor.fill_(0.5 if zero else tensor.item())
                else:
                    tensor.normal_(0, 0.1) if zero else tensor.uniform_(0.5, 1.5)
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.1)
                module.get_buffer("running_var").uniform_(0.5, 1.5)
    return network


def freeze_one_norm(network: nn.Module) -> dict[str, bool]:
    """Set training mode, but freeze the first BatchNorm as in fine-tuning; return the mode of each module."""
    network.train()
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms[:1]:
        norm.eval()
    return {name: module.training for name, module in network.named_modules()}


def parameters_in_use(network: nn.Module, x: Tensor) -> int:
    """Count the parameters that a pass in evaluation mode uses.

    These are the parameters of every module that the pass calls, and those with a gradient. A module counts even if
    its output is not used (the last encoder stages of a PSPNet).
    """
    network = copy.deepcopy(network).eval()
    called: set[nn.Module] = set()
    for module in network.modules():
        module.register_forward_pre_hook(lambda module, _: called.add(module))
    sum(leaf.float().sum() for leaf in leaves(network(x)) if leaf.requires_grad).backward()  # type: ignore[union-attr]
    own = {parameter for module in called for parameter in module.parameters(recurse=False)}
    return sum(p.numel() for p in network.parameters() if p.grad is not None or p in own)


def finite_gradients(network: nn.Module, x: Tensor) -> dict[str, bool]:
    """Run a pass in training mode; return whether the gradient is finite, for each parameter that has one."""
    network = copy.deepcopy(network).train()
    torch.manual_seed(0)
    loss = sum(leaf.float().square().mean() for leaf in leaves(network(x)) if leaf.requires_grad)
    loss.backward()  # type: ignore[union-attr]
    return {n: bool(p.grad.isfinite().all()) for n, p in network.named_parameters() if p.grad is not None}


class Examination:
    """Step-by-step examination of one network. After a failed step, the others still run.

    Args:
        network: the network to examine.
    """

    def __init__(self, network: Network) -> None:
        torch.manual_seed(0)
        self.network, self.x = network, network.example()
        self.steps: dict[str, str] = {}
        self.dense = randomize_constants(network.build())
        self.decompositions = Decompositions(self.dense)
        self.modes = freeze_one_norm(self.dense)
        try:
            self.outputs: list[Tensor] | None = outputs(self.dense, self.x)
        except Exception:
            self.outputs = None  # the suite must refuse such a network with a clear message
        # The first pass may have filled buffers.
        self.state = {name: tensor.clone() for name, tensor in self._tensors().items()}
        self.record: Record = {"params": sum(p.numel() for p in self.dense.parameters())}

    def _tensors(self) -> dict[str, Tensor]:
        """Return the parameters and buffers of the dense network by name."""
        return {**dict(self.dense.named_parameters()), **dict(self.dense.named_buffers())}

    def step(self, name: str, action: Callable[[], Any]) -> Any:
        """Run ``action`` and store its verdict under ``name``; return its result, or None if it fails."""
        try:
            result = action()
            self.steps.setdefault(name, "right")
            return result
        except Exception as error:
            self.steps[name] = verdict(error, name == "export")
            return None

    def full_rank(self) -> None:
        """Check that full rank reproduces the dense network's outputs and those of every factored layer."""
        error = self._full_rank_error(self.dense, self.x, self.decompositions)
        if error > TOLERANCE and self.x.is_floating_point():
            single, error = error, self._full_rank_error(copy.deepcopy(self.dense).double(), self.x.double())
            self.record["in single"] = single
            expect(error <= TOLERANCE_IN_DOUBLE, f"differs at full rank by {single:.1e}, in double by {error:.1e}")
        expect(error <= TOLERANCE, f"differs at full rank by {error:.1e}")
        self.record["error"] = error

    def _full_rank_error(self, dense: nn.Module, x: Tensor, decompositions: Decompositions | None = None) -> float:
        """Compress ``dense`` at full rank; return the largest relative difference of its outputs."""
        plan = plan_ranks(dense, x, "svd", Fixed("full", only_if_smaller=False), decompositions=decompositions)
        small = compress(dense, plan, decompositions=decompositions)
        touched = sum(p.numel() for name in plan.factored for p in dense.get_submodule(name).parameters())
        self.record["share"] = touched / self.record["params"]
        layers = tuple(plan.factored)
        expected = outputs(dense, x, layers)
        expect(difference(expected, expected) == 0, "the dense network's outputs are not finite")
        return difference(expected, outputs(small, x, layers))

    def half(self, method: str) -> tuple[RankPlan, nn.Module]:
        """Check that a plan for half of the parameters, or the smallest possible share, meets its budget and costs."""
        dense, x, decompositions, share = self.dense, self.x, self.decompositions, SHARE
        try:
            plan = plan_ranks(dense, x, method, Budget(params=share), decompositions=decompositions)
        except ValueError as error:
            least = LEAST.search(str(error))
            refused = "cannot be met" not in str(error) or "nothing can be factored" in str(error)
            expect(least is not None or refused, f"the refusal names no smallest possible share: {error}")
            if least is None:
                raise
            share = float(least[1])
            plan = plan_ranks(dense, x, method, Budget(params=share), decompositions=decompositions)
        small = compress(dense, plan, decompositions=decompositions)
        kept = parameters_in_use(small, x) / parameters_in_use(dense, x)
        self.record[f"kept {method}"] = kept
        expect(kept <= share + 1e-9, f"keeps {kept:.4f} of the parameters that run, but the budget is {share}")
        before, after = profile(dense, x), profile(small, x)
        counted = plan_cost(trace_layers(dense, x), (before.params, before.macs), plan)
        close = abs(counted[1] - after.macs) <= 1e-6 * after.macs
        expect(counted[0] == after.params and close, f"the plan counts {counted}, but the profile {after}")
        modes = {name: module.training for name, module in small.named_modules()}
        wrong = [name for name, mode in self.modes.items() if modes.get(name) != mode]
        expect(not wrong, f"training modes differ in the compressed network: {wrong[:3]}")
        return plan, small

    def gradients(self, plan: RankPlan, small: nn.Module) -> None:
        """Check that every factor has a finite gradient if the dense layer's weight has one."""
        try:
            dense = finite_gradients(self.dense, self.x)
        except Exception as error:
            self.steps["backward"] = f"not run: the dense network has none ({type(error).__name__})"
            return
        found = finite_gradients(small, self.x)
        parts = [
            f"{name}.{part}"
            for name in plan.factored
            if dense.get(f"{name}.weight")
            for part, _ in small.get_submodule(name).named_parameters()
        ]
        wrong = [name for name in parts if not found.get(name)]
        expect(not wrong, f"no finite gradient for {wrong[:3]}")

    def reload(self, small: nn.Module, folder: Path) -> None:
        """Check that the loaded network gives exactly the outputs of the saved one."""
        file = save_compressed(small, folder / "small.safetensors")
        torch.manual_seed(1)
        loaded = load_compressed(file, model=self.network.build())
        error = difference(outputs(small, self.x), outputs(loaded, self.x))
        expect(error == 0, f"the loaded network's outputs differ by {error:.1e}")

    def export(self, small: nn.Module, folder: Path) -> None:
        """Check that ``export_onnx``, which compares outputs, succeeds; fall back to a fixed batch size."""
        try:
            export_onnx(small, folder / "small.onnx", self.x)
            return
        except Exception as error:
            if not verdict(error, True).startswith("refused"):
                raise
        export_onnx(small, folder / "small.onnx", self.x, dynamic_batch=False)
        self.steps["export"] = "right, one batch size"

    def unchanged(self) -> None:
        """Check that the dense network is unchanged."""
        tensors = self._tensors()
        same = tensors.keys() == self.state.keys() and all(torch.equal(tensors[n], t) for n, t in self.state.items())
        expect(same, "the dense network's parameters or buffers have changed")
        modes = {name: module.training for name, module in self.dense.named_modules()}
        expect(modes == self.modes, "the dense network's training modes have changed")
        assert self.outputs is not None
        expect(difference(self.outputs, outputs(self.dense, self.x)) == 0, "the dense network's outputs have changed")


def examine(network: Network) -> Record:
    """Run all steps for one network; the record holds the ``outcome`` and the processor time in ``seconds``."""
    started = time.process_time()
    examination = Examination(network)
    examination.step("full rank", examination.full_rank)
    if examination.outputs is not None:
        halves = [examination.step(method, partial(examination.half, method)) for method in ("svd", "mixed")]
        if half := halves[1] or halves[0]:
            with tempfile.TemporaryDirectory() as folder:
                examination.step("backward", lambda: examination.gradients(*half))
                examination.step("load", lambda: examination.reload(half[1], Path(folder)))
                if network.export:
                    examination.step("export", lambda: examination.export(half[1], Path(folder)))
        examination.step("unchanged", examination.unchanged)
    outcome = outcome_of(examination.steps, examination.record.get("share", 0.0))
    return {
        **examination.record,
        "outcome": outcome,
        "seconds": time.process_time() - started,
        "steps": examination.steps,
    }


def outcome_of(steps: Mapping[str, str], share: float) -> str:
    """Return the outcome of an examination.

    Args:
        steps: step -> verdict.
        share: share of the parameters that are in factorable layers.

    Returns:
        ``WRONG`` if any step is; ``clearly refused`` if nothing was compressed; ``untouched`` if ``share`` is 0;
        otherwise ``right``.
    """
    if any(each.startswith("WRONG") for each in steps.values()):
        return "WRONG"
    if not any(steps.get(name) == "right" for name in ("full rank", "svd", "mixed")):
        return "clearly refused"
    return "right" if share else "untouched"


def verdict(error: Exception, of_export: bool) -> str:
    """Classify the error of a step.

    Args:
        error: the error.
        of_export: whether the step is the export, which may also refuse with a RuntimeError.

    Returns:
        ``refused`` and the message if a ``raise`` statement of the suite raised the error; otherwise ``WRONG`` and
        the last line of the error.
    """
    frames = traceback.extract_tb(error.__traceback__)
    raised, ours = frames[-1], [frame for frame in frames if Path(frame.filename).is_relative_to(COMMON)]
    cause = error.__cause__ or error.__context__  # a message copied from another error does not count
    own = isinstance(error, (ValueError, RuntimeError) if of_export else ValueError)
    said_here = ours[-1:] == [raised] and (raised.line or "").startswith("raise")  # not raised inside an operation
    if own and said_here and (cause is None or str(cause) != str(error)):
        return f"refused: {error}"
    if isinstance(error, WrongError):
        return f"WRONG: {error}"
    line = traceback.format_exception_only(error)[-1].strip()
    places = " from ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in (raised, *ours[-1:]))
    return f"WRONG: {line[:400]} ({places})"
