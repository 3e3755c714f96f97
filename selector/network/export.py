"""A network as ONNX or as a program of `torch.export`, checked against PyTorch."""

import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selector.data.checks import check_model
from selector.data.forward import call, device_of, evaluating, float_tensors
from selector.errors import SelectorError
from selector.files import write_whole
from selector.network.copying import uncompiled
from selector.network.latency import REPEATS, median_seconds
from selector.tables import text_table

ONNX, PROGRAM = ".onnx", ".pt2"
TOLERANCE = 1e-3
"""Largest difference of an output, as a share of the largest output, that counts as the same."""


@dataclass(frozen=True)
class Exported:
    """A file that a network was written to, and how it compares with PyTorch."""

    path: str
    bytes: int
    checked_by: str | None
    """What ran the file; None where nothing here can."""
    difference: float | None
    """Largest difference of an output over the largest output."""
    torch_seconds: float
    """Median of a forward pass of the images given, in PyTorch."""
    seconds: float | None
    """The same of the file."""
    images: int

    def __str__(self) -> str:
        """A table of size, agreement and speed."""
        rows = [
            ["file", self.path],
            ["size", f"{self.bytes / 1e6:.2f} MB"],
            ["checked by", self.checked_by or "nothing: onnxruntime is not installed"],
        ]
        if self.difference is not None:
            rows.append(["largest difference", f"{self.difference:.1e} of the largest output"])
        rows.append([f"PyTorch, {self.images} images", f"{1e3 * self.torch_seconds:.2f} ms"])
        if self.seconds is not None:
            rows.append([f"file, {self.images} images", f"{1e3 * self.seconds:.2f} ms"])
        return text_table(["export", ""], rows)


def export(model: nn.Module, path: str | Path, inputs: Tensor) -> Exported:
    """Write a network for deployment, and make sure that the file gives the same outputs.

    Args:
        model: The network; it is written as it evaluates.
        path: `NAME.onnx`, or `NAME.pt2` for `torch.export`.
        inputs: Images as the network is called with, two or more; their number stays free.

    Raises:
        SelectorError: An unknown suffix, a network that cannot be exported, a package that is
            missing, or a file whose outputs differ; nothing is left then.
    """
    check_model(model)
    target = Path(path)
    if target.suffix not in (ONNX, PROGRAM):
        raise SelectorError(f"{target} must end in {ONNX} or {PROGRAM} (torch.export)")
    if not isinstance(inputs, Tensor) or len(inputs) < 2:
        raise SelectorError("inputs must be a tensor of two images or more")
    model = uncompiled(model)
    write, check = (_onnx, _run_onnx) if target.suffix == ONNX else (_program, _run_program)
    found: list[Exported] = []

    def written_and_checked(partial: Path) -> None:
        write(model, inputs, partial)
        run, name = check(partial)
        found.append(_compared(model, inputs, target, partial.stat().st_size, run, name))

    with torch.no_grad(), evaluating(model):
        write_whole(target, written_and_checked)
    return found[0]


def _compared(
    model: nn.Module,
    inputs: Tensor,
    target: Path,
    size: int,
    run: Callable[[Tensor], list[Tensor]] | None,
    name: str | None,
) -> Exported:
    """The file's outputs and speed next to PyTorch's, on all images and on one alone."""
    device = device_of(model)
    difference = seconds = None
    if run is not None:
        gaps = []
        for images in (inputs, inputs[:1]):
            right = [one.cpu() for one in float_tensors(call(model, images))]
            actual = run(images)
            if [one.shape for one in right] != [one.shape for one in actual]:
                raise SelectorError(f"{target}: the exported network gives outputs of other shapes")
            gaps += [
                float((a - r).abs().max() / r.abs().max().clamp(min=1e-12))
                for r, a in zip(right, actual, strict=True)
            ]
        difference = max(gaps)
        if not difference <= TOLERANCE:
            raise SelectorError(
                f"{target}: the exported network's outputs differ from PyTorch's by "
                f"{difference:.1e} of the largest; nothing was written"
            )
        seconds = _median(lambda: run(inputs))
    torch_seconds = median_seconds(lambda: call(model, inputs), device)
    return Exported(str(target), size, name, difference, torch_seconds, seconds, len(inputs))


def _median(run: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _program(model: nn.Module, inputs: Tensor, path: Path) -> None:
    batch = torch.export.Dim("batch", min=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, (inputs,), dynamic_shapes=({0: batch},))
            with path.open("wb") as file:
                torch.export.save(program, file)
    except Exception as error:  # Whatever tracing leads to.
        raise SelectorError(f"torch.export cannot export this network: {_line(error)}") from error


def _run_program(path: Path) -> tuple[Callable[[Tensor], list[Tensor]], str]:
    with path.open("rb") as file:
        module: Any = torch.export.load(file).module()
    return lambda images: [one.cpu() for one in float_tensors(module(images))], "torch.export"


def _onnx(model: nn.Module, inputs: Tensor, path: Path) -> None:
    """Write ONNX in one file, by the exporter that is there."""
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise SelectorError(
            "ONNX needs the packages onnx and onnxscript: pip install 'saliency-selector[onnx]'"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                (inputs,),
                str(path),
                input_names=["images"],
                output_names=["outputs"],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except ImportError as error:
        raise SelectorError(
            f"ONNX needs one more package ({error}): pip install 'saliency-selector[onnx]'"
        ) from error
    except Exception as error:  # Whatever tracing leads to.
        raise SelectorError(f"this network cannot be exported to ONNX: {_line(error)}") from error


def _run_onnx(path: Path) -> tuple[Callable[[Tensor], list[Tensor]] | None, str | None]:
    try:
        import onnxruntime
    except ImportError:
        return None, None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> list[Tensor]:
        outputs = session.run(None, {name: images.cpu().numpy()})
        return [torch.from_numpy(one) for one in outputs]

    return run, f"onnxruntime {onnxruntime.__version__}"


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"
