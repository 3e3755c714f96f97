"""`python -m training ...`: the offline run, from networks to the shipped selector."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NoReturn, cast

import typer

from selector.errors import SelectorError
from selector.learning.artefact import DESCRIPTION
from selector.learning.selector import SaliencySelector
from selector.records.records import Records
from training.audit.data_card import write_card
from training.benchmarks.coverage import report as coverage_report
from training.benchmarks.coverage.runs import TOOLS
from training.benchmarks.finetuned import report as finetuned
from training.benchmarks.founding import runs as founding_runs
from training.benchmarks.founding import tables as founding_tables
from training.benchmarks.founding.methods import METHODS
from training.benchmarks.labels import modes as modes_benchmark
from training.benchmarks.labels import records as records_benchmark
from training.benchmarks.labels import which_metric as metric_table
from training.benchmarks.large import report as large_report
from training.benchmarks.networks import report as network_report
from training.benchmarks.networks.pruning_task import Folders, RunSettings
from training.benchmarks.reliability import report as reliability
from training.benchmarks.repair import criteria as repair_criteria
from training.benchmarks.repair import report as repair_report
from training.benchmarks.repair import settings as repair_settings
from training.benchmarks.speed import allocation as allocation_benchmark
from training.benchmarks.speed import imports as imports_benchmark
from training.benchmarks.speed import oracle as oracle_benchmark
from training.benchmarks.speed import resnet50 as resnet50_cost
from training.benchmarks.speed import saliency as saliency_benchmark
from training.benchmarks.speed import selector as selector_benchmark
from training.benchmarks.whole import page as whole_page
from training.benchmarks.whole import report as whole
from training.campaign import campaign as campaigns
from training.campaign import log as campaign_log
from training.campaign.backends import BackendName
from training.campaign.tasks import (
    BARS,
    RecordingTask,
    foreign_task,
    named_tasks,
    own_task,
    third_party_tasks,
)
from training.evaluation import ablation as ablations
from training.evaluation import report as evaluation_report
from training.evaluation.card import update_card
from training.evaluation.weights import weights_of
from training.reporting.result_file import RESULTS
from training.zoo.catalogue import zoo_of
from training.zoo.demo_network import train_demo_network
from training.zoo.specs import NetworkSpec
from training.zoo.third_party import FOREIGN

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "docs" / "benchmarks.md"
METRICS = ROOT / "docs" / "metrics.md"
Jobs = Annotated[int, typer.Option(help="Processes; several may share a GPU.")]
Minutes = Annotated[
    float | None, typer.Option(help="Stop then, after the group at hand; training is finished.")
]
Device = Annotated[str | None, typer.Option(help="Where to compute; a GPU if there is one.")]
Backend = Annotated[str, typer.Option(help="local, dask or ray.")]
Address = Annotated[str | None, typer.Option(help="Scheduler of a cluster.")]
app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


def _recorded(
    what: Sequence[NetworkSpec | RecordingTask],
    data: Path,
    weights: Path,
    jobs: int,
    minutes: float | None,
    device: str | None,
    backend: str,
    address: str | None,
) -> NoReturn:
    """Run a campaign, say how it ended, and end with its exit status."""
    outcomes = campaigns.run(
        what,
        data,
        weights,
        jobs=jobs,
        minutes=minutes,
        backend=cast(BackendName, backend),
        address=address,
        device=device,
    )
    print(campaign_log.summary(outcomes, weights))
    raise typer.Exit(campaign_log.exit_status(outcomes))


@app.command()
def campaign(
    data: Path = ROOT / "data",
    weights: Path = ROOT / "runs" / "zoo",
    zoo: Annotated[str, typer.Option(help="sampled, thorough, first, or third_party.")] = "sampled",
    mode: Annotated[
        Literal["plain", "repaired"], typer.Option(help="What is measured of every candidate.")
    ] = "plain",
    count: Annotated[int | None, typer.Option(help="Networks to draw; 160.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the networks drawn; 2026.")] = None,
    datasets: Annotated[
        str | None, typer.Option(help="Data sets to draw for, with commas between them.")
    ] = None,
    networks: Annotated[
        str | None,
        typer.Option(help="Networks, with commas between them, in this order; all by default."),
    ] = None,
    jobs: Jobs = 2,
    minutes: Minutes = None,
    device: Device = None,
    backend: Backend = "local",
    address: Address = None,
) -> None:
    """Train and record the networks of the zoo that are not recorded yet.

    Networks that stay below the bar of their data set are trained, and not recorded.

    Exit status: 0 if all are recorded, 1 if a network failed, 3 if only time was lacking.
    """
    if zoo == "third_party":
        tasks = third_party_tasks()
    else:
        drawn = zoo_of(zoo, count, seed, None if datasets is None else datasets.split(","))
        tasks = [own_task(spec, mode, BARS[spec.dataset]) for spec in drawn]
    if networks is not None:
        tasks = named_tasks(tasks, networks.split(","))
    _recorded(tasks, data, weights, jobs, minutes, device, backend, address)


@app.command()
def record_foreign(
    data: Path = ROOT / "data",
    weights: Path = ROOT / "runs" / "zoo",
    networks: Annotated[str, typer.Option(help="Networks, with commas between them.")] = ",".join(
        FOREIGN
    ),
    jobs: Jobs = 2,
    minutes: Minutes = None,
    device: Device = None,
    backend: Backend = "local",
    address: Address = None,
) -> None:
    """Record the networks that others trained, on test images; no selector learns from them.

    Exit status: as for `campaign`.
    """
    tasks = [foreign_task(name) for name in networks.split(",")]
    _recorded(tasks, data, weights, jobs, minutes, device, backend, address)


@app.command()
def data_card(
    data: Path = ROOT / "data",
    weights: Annotated[
        Path, typer.Option(help="Folder of trained networks, whose test accuracies are taken in.")
    ] = ROOT / "runs" / "zoo",
) -> None:
    """Write the counted part of the data card: networks, columns, what the audit found."""
    print(write_card(data, weights if weights.is_dir() else None))


@app.command()
def fit(data: Path = ROOT / "data", output: Path = ROOT / "models" / "selector") -> None:
    """Fit the shipped selector on the shipped records."""
    records = Records.load(data).own()
    learnt = SaliencySelector().fit(records, weights_of(p.network for p in records.networks))
    # The old one is in the history; a new one alone has the file names that the wheel lists.
    (output / DESCRIPTION).unlink(missing_ok=True)
    learnt.save(output)
    print(f"{output}: {len(learnt.networks_)} networks, single best {learnt.single_best_}")


@app.command()
def demo_network(output: Path = ROOT / "models" / "demo_digits.safetensors") -> None:
    """Train the network of the demo."""
    print(f"{output}: {train_demo_network(output):.1%} of the test digits right")


@app.command()
def evaluate(
    data: Path = ROOT / "data",
    seeds: Annotated[int, typer.Option(help="Seeds of the selectors, with families left out.")] = 3,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 2,
    curve: Annotated[bool, typer.Option(help="Learn from part of the networks, too.")] = True,
    docs: Annotated[bool, typer.Option(help="Only write the table of the documents.")] = False,
) -> None:
    """Judge selectors on families, data sets, and both, that they have not seen."""
    if not docs:
        evaluation_report.run(data, seeds=seeds, jobs=jobs, curve=curve)
    evaluation_report.update_page(BENCHMARKS)
    update_card(ROOT / "models" / "README.md")


@app.command()
def ablation(
    data: Path = ROOT / "data",
    jobs: Jobs = 2,
    variants: Annotated[
        str | None, typer.Option(help="Variants, with ; between them; all by default.")
    ] = None,
) -> None:
    """What each part of the selector adds, on families that it has not seen."""
    ablations.run(data, jobs, variants.split(";") if variants else None)


@app.command()
def benchmark_saliency(
    repeats: int = saliency_benchmark.REPEATS,
    docs: Annotated[bool, typer.Option(help="Only write the table of the document.")] = False,
) -> None:
    """Time and memory of all first-order metrics, over a plain forward and backward pass."""
    if not docs:
        saliency_benchmark.run(repeats)
    saliency_benchmark.update_page(METRICS)


@app.command()
def benchmark_records(data: Path = ROOT / "data") -> None:
    """Noise floor, near-copies, headroom and winners of the records."""
    records_benchmark.run(data)


@app.command()
def which_metric(
    data: Path = ROOT / "data",
    docs: Annotated[bool, typer.Option(help="Only write the page's table and picture.")] = False,
) -> None:
    """Which metric does best in which situation, by the records."""
    if not docs:
        metric_table.run(data)
    metric_table.update_page(ROOT / "docs" / "which-metric.md")


@app.command()
def benchmark_oracle(repeats: int = oracle_benchmark.REPEATS) -> None:
    """Speed of the oracle's engines, and what early stopping saves."""
    oracle_benchmark.run(repeats)


@app.command()
def benchmark_selector(
    selector: Annotated[Path | None, typer.Option(help="The shipped one by default.")] = None,
    repeats: int = selector_benchmark.REPEATS,
) -> None:
    """Time to load the selector, and to predict all decisions of a ResNet-50 at ten ratios."""
    selector_benchmark.run(selector, repeats)


@app.command()
def benchmark_imports(repeats: int = imports_benchmark.REPEATS) -> None:
    """Time of `import selector`, over that of `import torch`."""
    imports_benchmark.run(repeats)


@app.command()
def benchmark_allocation() -> None:
    """Time to spend a budget over ten to a thousand groups."""
    allocation_benchmark.run()


@app.command()
def benchmark_modes(
    minutes: Annotated[float | None, typer.Option(help="Begin no run later.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 1,
    results: Annotated[Path, typer.Option(help="Runs and result file.")] = RESULTS,
    docs: Annotated[bool, typer.Option(help="Put the table into the documents.")] = False,
) -> None:
    """Which way of measuring a removal tells what is left after repair; resumable."""
    modes_benchmark.run(minutes, results, jobs)
    if docs:
        modes_benchmark.update_page(BENCHMARKS, results)


@app.command()
def benchmark_coverage(
    networks: Annotated[
        str | None,
        typer.Option(help="Networks or sources (timm), with commas between them; all by default."),
    ] = None,
    tools: Annotated[
        str, typer.Option(help="What prunes them, with commas between them.")
    ] = ",".join(TOOLS),
    again: Annotated[
        str,
        typer.Option(help="Outcomes of other code that are run again, with commas between them."),
    ] = "",
    minutes: Annotated[float | None, typer.Option(help="Begin no run later.")] = None,
    results: Annotated[Path, typer.Option(help="Runs and result file.")] = RESULTS,
    docs: Annotated[bool, typer.Option(help="Put the tables into the documents.")] = False,
) -> None:
    """How many of the networks that people bring can be pruned, exactly; resumable."""
    coverage_report.run(
        None if networks is None else networks.split(","),
        coverage_report.chosen(tools, TOOLS),
        results,
        minutes=minutes,
        again=coverage_report.chosen(again, coverage_report.OUTCOMES),
    )
    if docs:
        coverage_report.update_page(BENCHMARKS, results)


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
        str | None,
        typer.Option(help="Methods, with ; between them; all but the slow ones by default."),
    ] = None,
    rounds: int = RunSettings.rounds,
    calibration_images: int = RunSettings.calibration_images,
    test_images: int = RunSettings.test_images,
    data: Annotated[Path, typer.Option(help="Records.")] = ROOT / "data",
    weights: Annotated[Path, typer.Option(help="Trained networks.")] = ROOT / "runs" / "zoo",
    learnt: Annotated[Path, typer.Option(help="Refitted selectors.")] = ROOT / "runs" / "networks",
    results: Annotated[Path, typer.Option(help="Runs, result file and plots.")] = RESULTS,
    minutes: Annotated[float | None, typer.Option(help="Begin no run later.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 2,
    docs: Annotated[bool, typer.Option(help="Put the means into the documents.")] = False,
) -> None:
    """Accuracy over MACs of many networks, pruned by every method; resumable."""
    named = None if networks is None else networks.split(",")
    chosen = None if methods is None else methods.split(";")
    wanted = network_report.Wanted(named, chosen, jobs, minutes)
    settings = RunSettings(rounds, calibration_images, test_images)
    network_report.run(wanted, settings, Folders(data, weights, learnt), results)
    if docs:
        network_report.update_pages(BENCHMARKS, ROOT / "README.md", results)


@app.command()
def benchmark_finetuned(
    data: Annotated[Path, typer.Option(help="Records.")] = ROOT / "data",
    weights: Annotated[Path, typer.Option(help="Trained networks.")] = ROOT / "runs" / "zoo",
    learnt: Annotated[Path, typer.Option(help="Refitted selectors.")] = ROOT / "runs" / "networks",
    results: Annotated[Path, typer.Option(help="Where runs and result file go.")] = RESULTS,
    minutes: Annotated[float | None, typer.Option(help="Begin no run later.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 1,
    docs: Annotated[bool, typer.Option(help="Put the tables into the documents.")] = False,
) -> None:
    """Pruned networks after training, by method and with or without repair; resumable."""
    finetuned.run(Folders(data, weights, learnt), jobs, minutes, results)
    if docs:
        finetuned.update_page(BENCHMARKS, results)


@app.command()
def benchmark_repair_criteria(
    minutes: Annotated[float | None, typer.Option(help="Begin no run later.")] = None,
    results: Annotated[Path, typer.Option(help="Where runs and result file go.")] = RESULTS,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 1,
    docs: Annotated[bool, typer.Option(help="Put the table into the documents.")] = False,
) -> None:
    """Accuracy after repair by criterion, all with the same widths; resumable."""
    repair_criteria.run(minutes, results, jobs)
    if docs:
        repair_criteria.update_page(BENCHMARKS, results)


@app.command()
def benchmark_whole(
    networks: Annotated[
        str | None, typer.Option(help="Networks, with commas between them; all by default.")
    ] = None,
    data: Annotated[Path, typer.Option(help="Records.")] = ROOT / "data",
    learnt: Annotated[Path, typer.Option(help="Refitted selectors.")] = ROOT / "runs" / "networks",
    results: Annotated[Path, typer.Option(help="Runs and result file.")] = RESULTS,
    minutes: Annotated[float | None, typer.Option(help="Begin no run later.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 2,
    ship: Annotated[
        Path | None, typer.Option(help="A saved selector that is given the learnt factors.")
    ] = None,
    docs: Annotated[bool, typer.Option(help="Put the tables into the documents.")] = False,
) -> None:
    """Whole prunings, families left out: the forecast of what is left, and the worth of widths."""
    names = None if networks is None else networks.split(",")
    whole.run(names, data, learnt, results, jobs, minutes, ship)
    if docs:
        whole_page.update_page(BENCHMARKS, results)


@app.command()
def benchmark_repair_settings(
    minutes: Annotated[float | None, typer.Option(help="Begin no run later.")] = None,
    results: Annotated[Path, typer.Option(help="Runs and result file.")] = RESULTS,
    docs: Annotated[bool, typer.Option(help="Put the table into the documents.")] = False,
) -> None:
    """Accuracy after repair, and time, over rounds and images; resumable."""
    repair_settings.run(minutes, results)
    if docs:
        repair_settings.update_page(BENCHMARKS, results)


@app.command()
def benchmark_repair(
    networks: Annotated[
        str | None, typer.Option(help="Networks, with commas between them; all by default.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Begin no run later.")] = None,
    speed: Annotated[
        bool, typer.Option(help="Time one repair over one scoring pass instead.")
    ] = False,
    memory: Annotated[
        bool, typer.Option(help="Peak memory of one repair and one scoring pass instead.")
    ] = False,
    results: Annotated[Path, typer.Option(help="Runs and result file.")] = RESULTS,
    docs: Annotated[bool, typer.Option(help="Put the table into the documents.")] = False,
) -> None:
    """Accuracy of third-party networks: pruned, repaired, distilled; resumable."""
    work = repair_report.run_speed if speed else repair_report.run
    work = repair_report.run_memory if memory else work
    work(None if networks is None else networks.split(","), minutes, results)
    if docs:
        repair_report.update_page(BENCHMARKS, results)


@app.command()
def benchmark_large(
    methods: Annotated[
        str | None, typer.Option(help="Methods, with ; between them; all by default.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Begin no run later.")] = None,
    results: Annotated[Path, typer.Option(help="Runs and result file.")] = RESULTS,
    docs: Annotated[bool, typer.Option(help="Put the table into the documents.")] = False,
) -> None:
    """EfficientNet-Lite1 on ImageNet, pruned by six methods, with and without repair; resumable."""
    large_report.run(None if methods is None else methods.split(";"), minutes, results)
    if docs:
        large_report.update_page(BENCHMARKS, results)
        large_report.update_readme(ROOT / "README.md", results)


@app.command()
def benchmark_reliability(
    parts: Annotated[
        str, typer.Option(help="Parts, with commas between them; none writes what is there.")
    ] = ",".join(reliability.PARTS),
    minutes: Annotated[float | None, typer.Option(help="In each part, begin no run later.")] = None,
    work: Annotated[Path, typer.Option(help="Runs, samples, large data.")] = ROOT
    / "runs"
    / "reliability",
    results: Annotated[Path, typer.Option(help="Where the result file goes.")] = RESULTS,
) -> None:
    """Hostile files, kills, random networks and load: what falls over; resumable."""
    reliability.run(parts.split(","), minutes, work, results)


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
