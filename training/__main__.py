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
from training import evaluation_report
from training.backends import BackendName
from training.benchmarks import first as first_benchmark
from training.benchmarks import founding as founding_runs
from training.benchmarks import founding_tables
from training.benchmarks import modes as modes_benchmark
from training.benchmarks import oracle as oracle_benchmark
from training.benchmarks import records as records_benchmark
from training.benchmarks import saliency as saliency_benchmark
from training.benchmarks.founding_methods import METHODS
from training.demo_network import train_demo_network
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
def evaluate(
    data: Path = ROOT / "data",
    seeds: Annotated[int, typer.Option(help="Selectors of so many seeds, left out by family.")] = 3,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 2,
    curve: Annotated[bool, typer.Option(help="Learn from part of the networks, too.")] = True,
) -> None:
    """Judge selectors on families, data sets, and both, that they have not seen."""
    evaluation_report.run(data, seeds=seeds, jobs=jobs, curve=curve)


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


def main() -> None:
    """Run a command; a `SelectorError` is one line and exit status 2."""
    try:
        app()
    except SelectorError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
