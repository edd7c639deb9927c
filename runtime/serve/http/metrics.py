"""What the server counts, for Prometheus."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from bfr.runtime.restore.batch import Restored
from bfr.runtime.serve.orders import Answer
from bfr.runtime.serve.systems import System
from bfr.runtime.serve.workers.pool import Pool

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_STAGES = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)
_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16)


class Metrics:
    """The counters of one process that answers requests. All batches are counted, those of jobs too."""

    def __init__(self, systems: Mapping[str, System]) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "bfr_requests", "Answers, by route, status and why", ["route", "code", "reason"], registry=registry
        )
        self.seconds = Histogram(
            "bfr_request_seconds",
            "From a request's first byte to its answer",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "bfr_requests_in_flight", "Requests that were let in and not yet answered", registry=registry
        )
        self.queued = Gauge("bfr_queue_length", "Of those, the ones that no network works on yet", registry=registry)
        self.faces_in_flight = Gauge("bfr_faces_in_flight", "Faces of requests in flight", registry=registry)
        self.body_bytes = Gauge("bfr_body_bytes", "Bytes of bodies in memory", registry=registry)
        self.images = Counter("bfr_images", "Images answered, by what became of them", ["result"], registry=registry)
        self.faces = Counter("bfr_faces", "Faces, by what became of them", ["result", "of"], registry=registry)
        self.stages = Histogram(
            "bfr_stage_seconds", "Seconds of an image in a stage", ["stage"], buckets=_STAGES, registry=registry
        )
        self.delay = Histogram(
            "bfr_queue_seconds", "Seconds of a face before its batch began", ["of"], buckets=_STAGES, registry=registry
        )
        self.batches = Histogram(
            "bfr_batch_size", "Faces that went through the networks together", buckets=_BATCHES, registry=registry
        )
        self.jobs = Gauge("bfr_jobs", "Jobs that have not ended", registry=registry)
        self.jobs_ended = Counter("bfr_jobs_ended", "Jobs that have ended, by how", ["state"], registry=registry)
        self.ready = Gauge("bfr_ready", "Whether new work is taken", registry=registry)
        about = Gauge("bfr_info", "What is served", ["version", "name", "system", "bundle"], registry=registry)
        for system in systems.values():
            labels = version("bfr-runtime"), system.name, system.bundle.manifest.system, system.bundle.hash
            about.labels(*labels).set(1)

    def answered(self, answer: Answer) -> None:
        """Count an image that was restored."""
        self.images.labels("restored" if answer.faces else "already sharp" if answer.sharp else "no face").inc()
        for stage, seconds in answer.seconds.items():
            self.stages.labels(stage).observe(seconds)

    def batch(self, results: Sequence[Restored], waited: Sequence[float], urgent: bool) -> None:
        """Count a batch and its faces. urgent: requests waited for them, not a job."""
        of = "requests" if urgent else "jobs"
        self.batches.observe(len(results))
        for result, seconds in zip(results, waited, strict=True):
            self.faces.labels("failed" if result.pixels is None else "restored", of).inc()
            self.delay.labels(of).observe(seconds)

    def render(self) -> bytes:
        """In Prometheus' text format, of CONTENT_TYPE."""
        return generate_latest(self.registry)


class PoolCollector(Collector):
    """What the workers say of themselves, whenever somebody asks."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def collect(self) -> Iterator[Metric]:
        """As of prometheus_client."""
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
