"""What the server counts, for Prometheus."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from bfr.runtime.restore.batch import Restored
from bfr.runtime.serve.orders import Answer
from bfr.runtime.serve.systems import System
from bfr.runtime.serve.workers.pool import Pool

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_STAGES = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)
_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16)


class Metrics:
    """The counters of one process that answers requests. All batches are counted, those of jobs too."""

    def __init__(self, systems: Mapping[str, System]) -> None:
        registry = self.registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        ProcessCollector(registry=registry)
        self.requests = counter("bfr_requests", "Answers, by route, status and why", ["route", "code", "reason"])
        self.seconds = histogram(
            "bfr_request_seconds", "From a request's first byte to its answer", ["route"], buckets=_SECONDS
        )
        self.in_flight = gauge("bfr_requests_in_flight", "Requests that were let in and not yet answered")
        self.queued = gauge("bfr_queue_length", "Of those, the ones that no network works on yet")
        self.faces_in_flight = gauge("bfr_faces_in_flight", "Faces of requests in flight")
        self.body_bytes = gauge("bfr_body_bytes", "Bytes of bodies in memory")
        self.images = counter("bfr_images", "Images answered, by result", ["result"])
        self.faces = counter("bfr_faces", "Faces, by result", ["result", "of"])
        self.stages = histogram("bfr_stage_seconds", "Seconds of an image in a stage", ["stage"], buckets=_STAGES)
        self.delay = histogram("bfr_queue_seconds", "Seconds of a face before its batch began", ["of"], buckets=_STAGES)
        self.batches = histogram("bfr_batch_size", "Faces that went through the networks together", buckets=_BATCHES)
        self.jobs = gauge("bfr_jobs", "Jobs that have not ended")
        self.jobs_ended = counter("bfr_jobs_ended", "Jobs that have ended, by how", ["state"])
        self.ready = gauge("bfr_ready", "Whether new work is taken")
        about = gauge("bfr_info", "What is served", ["version", "name", "system", "bundle"])
        for system in systems.values():
            labels = version("bfr-runtime"), system.name, system.bundle.manifest.system, system.bundle.hash
            about.labels(*labels).set(1)

    def answered(self, answer: Answer) -> None:
        """Count an image that was restored."""
        self.images.labels("restored" if answer.faces else "already sharp" if answer.sharp else "no face").inc()
        for stage, seconds in answer.seconds.items():
            self.stages.labels(stage).observe(seconds)

    def batch(self, results: Sequence[Restored], waited: Sequence[float], urgent: bool) -> None:
        """Count a batch and its faces.

        Args:
            results: One for each face.
            waited: Seconds of each face in the queue.
            urgent: Requests waited for them, not a job.
        """
        of = "requests" if urgent else "jobs"
        self.batches.observe(len(results))
        for result, seconds in zip(results, waited, strict=True):
            self.faces.labels("failed" if result.pixels is None else "restored", of).inc()
            self.delay.labels(of).observe(seconds)

    def render(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


class PoolCollector(Collector):
    """Reads the state of the workers whenever the metrics are rendered."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, see prometheus_client."""
        pool = self.pool
        yield GaugeMetricFamily("bfr_workers", "Processes that run the networks", value=pool.running)
        yield CounterMetricFamily("bfr_worker_restarts", "Workers that were started anew", value=pool.restarts)
        yield GaugeMetricFamily("bfr_faces_waiting", "Faces that wait for a worker", value=len(pool.batcher))
        busy = CounterMetricFamily(
            "bfr_worker_busy_seconds", "Seconds of work: its rate is the utilisation", labels=["worker"]
        )
        resident = GaugeMetricFamily("bfr_worker_resident_bytes", "Memory of a worker's process", labels=["worker"])
        device = GaugeMetricFamily("bfr_device_memory_bytes", "Memory of a worker's device", labels=["worker", "kind"])
        for worker in pool.workers:
            number = str(worker.number)
            busy.add_metric([number], worker.busy)
            resident.add_metric([number], worker.child.resident if worker.child else 0)
            for kind, found in zip(("free", "total"), worker.memory or (), strict=False):
                device.add_metric([number, kind], found)
        yield from (busy, resident, device)
