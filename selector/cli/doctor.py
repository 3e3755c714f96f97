"""The command `doctor`: is everything here that is needed, and does it work?"""

import json
import logging
import platform
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from selector.cli import options as opt
from selector.cli.command import REFUSED, printed
from selector.cli.outputs import Printed, remarks_from
from selector.tables import text_table

NEEDED = ("torch", "torch-pruning", "lightgbm", "numpy", "scipy", "pyarrow", "safetensors")
EXTRA = {
    "timm": "networks of timm",
    "torchvision": "networks of torchvision",
    "transformers": "networks of Hugging Face",
    "onnx": "export to ONNX",
    "onnxscript": "export to ONNX",
    "onnxruntime": "checks of ONNX files",
    "pandas": "to_pandas()",
    "tensorboard": "callbacks for TensorBoard",
}
FINE, MISSING, BROKEN = "fine", "not there", "broken"


@printed
def doctor(as_json: opt.Json = False) -> str | Printed:
    """Check the installation: versions, the shipped selector, devices, what could be added."""
    rows = list(_rows())
    broken = [name for name, state, _ in rows if state == BROKEN]
    if as_json:
        text = json.dumps([{"part": p, "state": s, "what": w} for p, s, w in rows], indent=1)
    else:
        text = text_table(["part", "state", "what"], [list(row) for row in rows])
    if broken:
        return Printed(text, REFUSED, f"broken: {', '.join(broken)}")
    return text if as_json else f"{text}\nall is well"


def _rows() -> Iterator[tuple[str, str, str]]:
    yield "saliency-selector", FINE, version("saliency-selector")
    yield "Python", FINE, f"{platform.python_version()}, {platform.platform(terse=True)}"
    for name in NEEDED:
        found = _version(name)
        yield name, BROKEN if found is None else FINE, found or f"pip install {name}"
    yield _tried("folder", _folder)
    yield _tried("shipped selector", _selector)
    yield _tried("a small pruning", _pruning)
    yield _tried("devices", _devices)
    for name, use in EXTRA.items():
        found = _version(name)
        yield name, MISSING if found is None else FINE, found or f"only for {use}"
    if _version("selector-ac") is not None:
        yield "selector-ac", BROKEN, "has a module called selector, too; uninstall one of the two"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _tried(part: str, check: Callable[[], str]) -> tuple[str, str, str]:
    try:
        return part, FINE, check()
    except Exception as error:  # That is what is looked for.
        return part, BROKEN, f"{type(error).__name__}: {error}"


def _folder() -> str:
    import selector

    return str(Path(selector.__file__).parent)


def _selector() -> str:
    import selector

    found = selector.SaliencySelector.shipped()
    return f"learnt from {len(found.networks_)} networks, {len(found.arms_)} metrics"


def _pruning() -> str:
    import selector
    from selector.cli.demo import calibration, network

    with remarks_from(logging.ERROR):  # What this pruning expects is of no interest here.
        result = selector.prune(network(), list(calibration())[:2], keep_macs=0.8, rounds=1)
    before, after = result.report.macs
    return f"{after / before:.0%} of the demo network's MACs left"


def _devices() -> str:
    import torch

    found = [f"cpu ({torch.get_num_threads()} threads)"]
    found += [
        f"cuda:{number} ({torch.cuda.get_device_name(number)})"
        for number in range(torch.cuda.device_count())
    ]
    if torch.backends.mps.is_available():
        found.append("mps")
    return ", ".join(found) + (f"; {sys.byteorder} endian" if sys.byteorder != "little" else "")
