"""Which pruning saliency to trust in each layer of a trained network, and pruning by it.

The names below are the public face. Each is loaded from its room when it is first used, so that
`import selector` costs next to nothing: the rooms need PyTorch, LightGBM, SciPy and pyarrow.
"""

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selector.data.image_files import read_images as read_images
    from selector.data.loss import LossChange as LossChange
    from selector.data.loss import evaluate as evaluate
    from selector.errors import SelectorError as SelectorError
    from selector.learning.compare import compare as compare
    from selector.learning.explain import explain as explain
    from selector.learning.selector import SaliencySelector as SaliencySelector
    from selector.network.checkpoint import load_pruned as load_pruned
    from selector.network.checkpoint import save_pruned as save_pruned
    from selector.network.export import export as export
    from selector.network.tracing import find_groups as find_groups
    from selector.oracle.oracle import Oracle as Oracle
    from selector.oracle.oracle import loss_changes as loss_changes
    from selector.planning.choose import choose as choose
    from selector.planning.composition.compose import compose_myopically as compose_myopically
    from selector.planning.composition.myopic import Myopic as Myopic
    from selector.planning.plan import Plan as Plan
    from selector.planning.sensitivity import sensitivity as sensitivity
    from selector.pruning.apply import apply_plan as apply_plan
    from selector.pruning.callbacks import Callback as Callback
    from selector.pruning.callbacks import CsvLog as CsvLog
    from selector.pruning.callbacks import RoundEnd as RoundEnd
    from selector.pruning.callbacks import TensorBoardLog as TensorBoardLog
    from selector.pruning.method_comparison import compare_methods as compare_methods
    from selector.pruning.optimizer import rebind as rebind
    from selector.pruning.prune import prune as prune
    from selector.pruning.result import PruneResult as PruneResult
    from selector.pruning.result import PruningError as PruningError
    from selector.pruning.torch_pruning import SelectorImportance as SelectorImportance
    from selector.recording.record import record as record
    from selector.records.records import Records as Records
    from selector.repair.correspondence import kept_after_history as kept_after_history
    from selector.repair.distillation.distil import distil as distil
    from selector.repair.reconstruction import reconstruct as reconstruct
    from selector.saliency.checks import check_metric as check_metric
    from selector.saliency.proposals.registry import PROPOSALS as PROPOSALS
    from selector.saliency.proposals.registry import Proposal as Proposal
    from selector.saliency.proposals.registry import register_proposal as register_proposal
    from selector.saliency.registry import METRICS as METRICS
    from selector.saliency.registry import Metric as Metric
    from selector.saliency.registry import register_metric as register_metric
    from selector.saliency.scoring import score as score
    from selector.statistics.statistic import register_statistic as register_statistic

__version__: str = _version("saliency-selector")

__all__ = [
    "METRICS",
    "PROPOSALS",
    "Callback",
    "CsvLog",
    "LossChange",
    "Metric",
    "Myopic",
    "Oracle",
    "Plan",
    "Proposal",
    "PruneResult",
    "PruningError",
    "Records",
    "RoundEnd",
    "SaliencySelector",
    "SelectorError",
    "SelectorImportance",
    "TensorBoardLog",
    "apply_plan",
    "check_metric",
    "choose",
    "compare",
    "compare_methods",
    "compose_myopically",
    "distil",
    "evaluate",
    "explain",
    "export",
    "find_groups",
    "kept_after_history",
    "load_pruned",
    "loss_changes",
    "prune",
    "read_images",
    "rebind",
    "reconstruct",
    "record",
    "register_metric",
    "register_proposal",
    "register_statistic",
    "save_pruned",
    "score",
    "sensitivity",
]

_MODULES = {
    "METRICS": "saliency.registry",
    "PROPOSALS": "saliency.proposals.registry",
    "Callback": "pruning.callbacks",
    "CsvLog": "pruning.callbacks",
    "LossChange": "data.loss",
    "Metric": "saliency.registry",
    "Myopic": "planning.composition.myopic",
    "Oracle": "oracle.oracle",
    "Plan": "planning.plan",
    "Proposal": "saliency.proposals.registry",
    "PruneResult": "pruning.result",
    "PruningError": "pruning.result",
    "Records": "records.records",
    "RoundEnd": "pruning.callbacks",
    "SaliencySelector": "learning.selector",
    "SelectorError": "errors",
    "SelectorImportance": "pruning.torch_pruning",
    "TensorBoardLog": "pruning.callbacks",
    "apply_plan": "pruning.apply",
    "check_metric": "saliency.checks",
    "choose": "planning.choose",
    "compare": "learning.compare",
    "compare_methods": "pruning.method_comparison",
    "compose_myopically": "planning.composition.compose",
    "distil": "repair.distillation.distil",
    "evaluate": "data.loss",
    "explain": "learning.explain",
    "export": "network.export",
    "find_groups": "network.tracing",
    "kept_after_history": "repair.correspondence",
    "load_pruned": "network.checkpoint",
    "loss_changes": "oracle.oracle",
    "prune": "pruning.prune",
    "read_images": "data.image_files",
    "rebind": "pruning.optimizer",
    "reconstruct": "repair.reconstruction",
    "record": "recording.record",
    "register_metric": "saliency.registry",
    "register_proposal": "saliency.proposals.registry",
    "register_statistic": "statistics.statistic",
    "save_pruned": "network.checkpoint",
    "score": "saliency.scoring",
    "sensitivity": "planning.sensitivity",
}
"""Public name -> the module that defines it, as in the imports above; a test compares the two."""


def __getattr__(name: str) -> object:
    """Load a public name from its module when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module 'selector' has no attribute {name!r}")
    value: object = getattr(import_module(f"selector.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, for tab completion."""
    return [*__all__, "__version__"]
