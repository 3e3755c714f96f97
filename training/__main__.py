"""`python -m training ...`: the offline run, from networks to the shipped selector."""

import sys
from pathlib import Path
from typing import Annotated, cast

import typer

from selector.errors import SelectorError
from selector.records import Records
from selector.selection import SaliencySelector
from selector.tables import text_table
from training import campaign as campaigns
from training.backends import BackendName
from training.benchmarks import first as first_benchmark
from training.benchmarks import founding as founding_runs
from training.benchmarks import founding_tables, network_report, resnet50_cost
from training.benchmarks import modes as modes_benchmark
from training.benchmarks import oracle as oracle_benchmark
from training.benchmarks import records as records_benchmark
from training.benchmarks import saliency as saliency_benchmark
from training.benchmarks.founding_methods import METHODS
from training.benchmarks.networks import Folders, Settings
from training.benchmarks.results_file import RESULTS, write_result
from training.demo_network import train_demo_network
from training.evaluation import leave_one_family_out
from training.zoo import FIRST_ZOO

ROOT = Path(__file__).resolve().parents[1]
app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


@app.command()
def campaign(
    data: Path = ROOT / "data",
    weights: Path = ROOT / "runs" / "zoo",
    jobs: Annotated[int, typer.Option(help="Processes.")] = 2,
    minutes: Annotated[float | None, typer.Option(help="Begin no network later.")] = None,
    backend: Annotated[str, typer.Option(help="local, dask or ray.")] = "local",
    address: Annotated[str | None, typer.Option(help="Scheduler of a cluster.")] = None,
) -> None:
    """Train and record the networks of the zoo that are not recorded yet."""
    outcomes = campaigns.run(
        FIRST_ZOO,
        data,
        weights,
        jobs=jobs,
        minutes=minutes,
        backend=cast(BackendName, backend),
        address=address,
    )
    print(text_table(["network", "outcome"], [[o.network, o.reason] for o in outcomes]))
    if not all(outcome.done for outcome in outcomes):
        raise typer.Exit(1)


@app.command()
def fit(data: Path = ROOT / "data", output: Path = ROOT / "models" / "selector") -> None:
    """Fit the shipped selector on the shipped records."""
    learnt = SaliencySelector().fit(Records.load(data))
    learnt.save(output)
    print(f"{output}: {len(learnt.networks_)} networks, single best {learnt.single_best_}")


@app.command()
def demo_network(output: Path = ROOT / "models" / "demo_digits.safetensors") -> None:
    """Train the network of the demo."""
    print(f"{output}: {train_demo_network(output):.1%} of the test digits right")


@app.command()
def evaluate(data: Path = ROOT / "data") -> None:
    """Leave one family out: how much of the gap between SBS and oracle is closed."""
    found = leave_one_family_out(Records.load(data), progress=True)
    rows = [
        [
            row.method,
            f"{row.oracle_calls:.0f}",
            f"{row.regret:.3f}",
            f"{row.nats:.4f}",
            f"{row.gap_closed:.1%}",
            f"{row.gap_closed_nats:.1%}",
        ]
        for row in found.methods
    ]
    columns = ["method", "oracle calls", "regret", "nats", "gap closed", "gap closed, nats"]
    print(text_table(columns, rows))
    print(
        f"{found.decisions} decisions, {found.networks} networks of {found.families} families, each"
        f" judged without its family; selector worse than SBS on {found.worse_than_single_best:.0%}"
        f" of the networks; fell back to SBS in {found.fallback_share:.0%} of the decisions"
    )
    summary = {
        "gap_closed": found.of("selector").gap_closed,
        "gap_closed_nats": found.of("selector").gap_closed_nats,
        "gap_closed_verify2": found.of("selector, verify=2").gap_closed,
        "gap_closed_verify3": found.of("selector, verify=3").gap_closed,
        "gap_closed_portfolio2": found.of("fixed portfolio of 2 + oracle").gap_closed,
        "gap_closed_portfolio3": found.of("fixed portfolio of 3 + oracle").gap_closed,
        "worse_than_single_best": found.worse_than_single_best,
        "networks": float(found.networks),
        "families": float(found.families),
        "decisions": float(found.decisions),
    }
    print(write_result("evaluation", summary, [vars(row) for row in found.methods]))


@app.command()
def benchmark_first(test_images: int = first_benchmark.TEST_IMAGES) -> None:
    """Prune two foreign networks to 70 % and 50 % of their MACs by every method."""
    first_benchmark.run(test_images)


@app.command()
def benchmark_saliency(repeats: int = saliency_benchmark.REPEATS) -> None:
    """Time and memory of all first-order metrics, over a plain forward and backward pass."""
    saliency_benchmark.run(repeats)


@app.command()
def benchmark_records(data: Path = ROOT / "data") -> None:
    """Noise floor, near-copies, headroom and winners of the records."""
    records_benchmark.run(data)


@app.command()
def benchmark_oracle(repeats: int = oracle_benchmark.REPEATS) -> None:
    """Speed of the oracle's engines, and what early stopping saves."""
    oracle_benchmark.run(repeats)


@app.command()
def benchmark_modes(jobs: Annotated[int, typer.Option(help="Processes.")] = 2) -> None:
    """How well plain and compensated removal forecast the loss after recalibration."""
    modes_benchmark.run(jobs=jobs)


@app.command()
def benchmark_founding(
    networks: Annotated[str, typer.Option(help="Networks, with commas between them.")] = ",".join(
        founding_runs.NETWORKS
    ),
    methods: Annotated[
        str | None, typer.Option(help="Methods, with ; between them; all by default.")
    ] = None,
    repeats: int = founding_runs.REPEATS,
    minutes: Annotated[float | None, typer.Option(help="Begin no run later.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 2,
) -> None:
    """The experiment of arXiv 2004.03376 on its networks, and our additions; resumable."""
    chosen = list(METHODS) if methods is None else methods.split(";")
    founding_tables.run(networks.split(","), chosen, repeats, jobs, minutes)


@app.command()
def benchmark_networks(
    networks: Annotated[
        str | None, typer.Option(help="Networks, with commas between them; all by default.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Methods, with ; between them; by default all but the dear.")
    ] = None,
    finetune: Annotated[
        bool, typer.Option(help="Prune to half the MACs and train for one short epoch instead.")
    ] = False,
    rounds: int = Settings.rounds,
    calibration_images: int = Settings.calibration_images,
    test_images: int = Settings.test_images,
    data: Annotated[Path, typer.Option(help="Records.")] = ROOT / "data",
    weights: Annotated[Path, typer.Option(help="Trained networks.")] = ROOT / "runs" / "zoo",
    learnt: Annotated[Path, typer.Option(help="Refitted selectors.")] = ROOT / "runs" / "networks",
    results: Annotated[Path, typer.Option(help="Runs, result file and plots.")] = RESULTS,
    minutes: Annotated[float | None, typer.Option(help="Begin no run later.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 2,
    readme: Annotated[bool, typer.Option(help="Put the means into the README.")] = False,
) -> None:
    """Accuracy over MACs of many networks, pruned by every method; resumable."""
    named = None if networks is None else networks.split(",")
    chosen = None if methods is None else methods.split(";")
    wanted = network_report.Wanted(named, chosen, jobs, minutes)
    settings = Settings(rounds, calibration_images, test_images)
    work = network_report.tune if finetune else network_report.run
    work(wanted, settings, Folders(data, weights, learnt), results)
    if readme:
        network_report.update_readme(ROOT / "README.md", results)


@app.command()
def benchmark_resnet50_cost(
    images: Annotated[int, typer.Option(help="For scores and recalibration.")] = 256,
    size: Annotated[int, typer.Option(help="Their height and width in pixels.")] = 224,
    results: Annotated[Path, typer.Option(help="Where the result file goes.")] = RESULTS,
) -> None:
    """Time of the selector on a ResNet-50, over that of Torch-Pruning's Taylor pruner."""
    resnet50_cost.run(images, size, folder=results)


def main() -> None:
    """Run a command; a `SelectorError` is one line and exit status 2."""
    try:
        app()
    except SelectorError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
