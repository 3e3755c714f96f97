"""Where tasks run: processes of this machine, or workers of a Dask or Ray cluster (joblib)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import joblib

from selector.errors import SelectorError

BackendName = Literal["local", "dask", "ray"]
ReturnAs = Literal["list", "generator_unordered"]
"""Whether joblib hands results over as they come; Ray's backend knows lists only."""

INSTALL = "pip install 'saliency-selector[distributed]'"


@contextmanager
def running_on(backend: BackendName, address: str | None, jobs: int) -> Iterator[ReturnAs]:
    """Context in which joblib's tasks run on a backend; it says how their results come.

    Args:
        backend: `local` for processes of this machine, `dask` or `ray` for a cluster.
        address: The scheduler's address; without one, a cluster of `jobs` workers is started here.
        jobs: Processes of this machine, where no address is given.

    Raises:
        SelectorError: The backend is not installed, or no scheduler answers.
    """
    if backend == "local":
        if address is not None:
            raise SelectorError(f"address {address!r} belongs to --backend dask or ray")
        with joblib.parallel_config("loky", n_jobs=jobs):
            yield "generator_unordered"
    elif backend == "dask":
        with _dask(address, jobs) as how:
            yield how
    elif backend == "ray":
        with _ray(address, jobs) as how:
            yield how
    else:
        raise SelectorError(f"unknown backend {backend!r}; known: local, dask, ray")


@contextmanager
def _dask(address: str | None, jobs: int) -> Iterator[ReturnAs]:
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise SelectorError(f"--backend dask needs Dask: {INSTALL}") from error
    cluster = None
    try:
        if address is None:
            # One thread a worker: two tasks in one process would share torch's settings.
            cluster = LocalCluster(n_workers=jobs, threads_per_worker=1, dashboard_address=None)
        try:
            client = Client(cluster or address, timeout=20)
        except (OSError, ValueError) as error:
            raise SelectorError(f"no Dask scheduler answers at {address}: {error}") from error
        with client, joblib.parallel_config("dask", n_jobs=-1):
            yield "generator_unordered"
    finally:
        if cluster is not None:
            cluster.close()


@contextmanager
def _ray(address: str | None, jobs: int) -> Iterator[ReturnAs]:
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise SelectorError(f"--backend ray needs Ray: {INSTALL}") from error
    begun = not ray.is_initialized()
    try:
        if begun:
            options = {"num_cpus": jobs} if address is None else {"address": address}
            try:
                ray.init(
                    **options, log_to_driver=False, include_dashboard=False, logging_level="ERROR"
                )
            except Exception as error:  # Ray has no one class for what may go wrong at the start.
                where = "started here" if address is None else f"reached at {address}"
                raise SelectorError(f"Ray could not be {where}: {error}") from error
        register_ray()
        workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
        with joblib.parallel_config("ray", n_jobs=workers):
            yield "list"
    finally:
        if begun and ray.is_initialized():
            ray.shutdown()
