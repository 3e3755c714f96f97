"""Which pruning saliency to trust in each layer of a trained network, and pruning by it."""

from selector.checkpoint import load_pruned as load_pruned
from selector.checkpoint import save_pruned as save_pruned
from selector.comparison import compare as compare
from selector.errors import SelectorError as SelectorError
from selector.explaining import explain as explain
from selector.laws import check_metric as check_metric
from selector.myopic import Myopic as Myopic
from selector.objective import evaluate as evaluate
from selector.oracle import Oracle as Oracle
from selector.oracle import loss_changes as loss_changes
from selector.plan import Plan as Plan
from selector.planning import choose as choose
from selector.pruning import PruneResult as PruneResult
from selector.pruning import PruningError as PruningError
from selector.pruning import apply_plan as apply_plan
from selector.pruning import prune as prune
from selector.rebinding import rebind as rebind
from selector.recording import record as record
from selector.records import Records as Records
from selector.rivals import LossChange as LossChange
from selector.saliency import METRICS as METRICS
from selector.saliency import Metric as Metric
from selector.saliency import register_metric as register_metric
from selector.scoring import score as score
from selector.selection import SaliencySelector as SaliencySelector
from selector.tracing import find_groups as find_groups
