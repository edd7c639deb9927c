"""What the server counts, for Prometheus."""

from importlib.metadata import version

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from bfr.runtime.serve.orders import Answer

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_STAGES = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)
_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16)


class Metrics:
    """The counters of one process that answers requests."""

    def __init__(self, *, system: str, bundle: str) -> None:
        registry = self.registry = CollectorRegistry()
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
        self.in_house = Gauge(
            "bfr_requests_in_house", "Requests that were let in and not yet answered", registry=registry
        )
        self.queued = Gauge("bfr_queue_length", "Of those, the ones that no network works on yet", registry=registry)
        self.images = Counter("bfr_images", "Images answered, by what became of them", ["result"], registry=registry)
        self.faces = Counter("bfr_faces", "Faces, by what became of them", ["result"], registry=registry)
        self.stages = Histogram(
            "bfr_stage_seconds", "Seconds of an image in a stage", ["stage"], buckets=_STAGES, registry=registry
        )
        self.batches = Histogram(
            "bfr_batch_size", "Faces that went through the networks together", buckets=_BATCHES, registry=registry
        )
        self.jobs = Gauge("bfr_jobs", "Jobs on disk, by state", ["state"], registry=registry)
        self.replicas = Gauge(
            "bfr_replicas", "Processes that serve, by what they do", ["deployment"], registry=registry
        )
        self.ready = Gauge("bfr_ready", "Whether new work is taken", registry=registry)
        about = Gauge("bfr_info", "What is served", ["version", "system", "bundle"], registry=registry)
        about.labels(version("bfr-runtime"), system, bundle).set(1)

    def answered(self, answer: Answer) -> None:
        """Count an image that was restored."""
        self.images.labels("restored" if answer.faces else "no face").inc()
        self.faces.labels("restored").inc(answer.faces)
        self.faces.labels("failed").inc(answer.failed)
        for stage, seconds in answer.seconds.items():
            self.stages.labels(stage).observe(seconds)
        for size in answer.batches:
            self.batches.observe(size)

    def render(self) -> bytes:
        """In Prometheus' text format, of CONTENT_TYPE."""
        return generate_latest(self.registry)
