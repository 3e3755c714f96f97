"""Which pruning saliency to trust in each layer of a trained network, and pruning by it."""

from selector.data.loss import LossChange as LossChange
from selector.data.loss import evaluate as evaluate
from selector.errors import SelectorError as SelectorError
from selector.learning.compare import compare as compare
from selector.learning.explain import explain as explain
from selector.learning.selector import SaliencySelector as SaliencySelector
from selector.network.checkpoint import load_pruned as load_pruned
from selector.network.checkpoint import save_pruned as save_pruned
from selector.network.tracing import find_groups as find_groups
from selector.oracle.oracle import Oracle as Oracle
from selector.oracle.oracle import loss_changes as loss_changes
from selector.planning.choose import choose as choose
from selector.planning.composition.myopic import Myopic as Myopic
from selector.planning.plan import Plan as Plan
from selector.pruning.apply import apply_plan as apply_plan
from selector.pruning.optimizer import rebind as rebind
from selector.pruning.prune import prune as prune
from selector.pruning.result import PruneResult as PruneResult
from selector.pruning.result import PruningError as PruningError
from selector.recording.record import record as record
from selector.records.records import Records as Records
from selector.saliency.checks import check_metric as check_metric
from selector.saliency.registry import METRICS as METRICS
from selector.saliency.registry import Metric as Metric
from selector.saliency.registry import register_metric as register_metric
from selector.saliency.scoring import score as score
