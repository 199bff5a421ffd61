"""Every key under the output URI. The only place that knows them, so laptop and cluster cannot disagree."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """The places of one run.

    Attributes:
        output_uri: the run's prefix, with one slash at its end.
    """

    output_uri: str

    def __post_init__(self) -> None:
        """Brings every spelling of one prefix to the same value."""
        object.__setattr__(self, "output_uri", self.output_uri.rstrip("/") + "/")

    @property
    def data_uri(self) -> str:
        """Good rows, as Parquet parts."""
        return self.output_uri + "data/"

    @property
    def errors_uri(self) -> str:
        """Failed rows, as Parquet parts."""
        return self.output_uri + "errors/"

    @property
    def openai_uri(self) -> str:
        """Results in OpenAI's form, as JSON lines, if they are asked for."""
        return self.output_uri + "openai/"

    @property
    def meta_uri(self) -> str:
        """What is known about the run."""
        return self.output_uri + "_meta/"

    @property
    def manifest_uri(self) -> str:
        """Written last: its presence means done."""
        return self.meta_uri + "manifest.json"

    @property
    def progress_uri(self) -> str:
        """Rewritten while the run goes on."""
        return self.meta_uri + "progress.json"

    @property
    def spec_uri(self) -> str:
        """The job file as it ran."""
        return self.meta_uri + "spec.json"

    @property
    def driver_log_uri(self) -> str:
        """A copy of the driver's log."""
        return self.meta_uri + "driver.log"

    @property
    def outcome_uri(self) -> str:
        """How the run ended, whether or not there is a manifest."""
        return self.meta_uri + "outcome.json"

    @property
    def run_uri(self) -> str:
        """What the run was asked, and of which input: a later attempt must be asked the same."""
        return self.meta_uri + "run.json"

    @property
    def checkpoint_uri(self) -> str:
        """A record of every write task, written after its parts."""
        return self.meta_uri + "checkpoint/"

    @property
    def attempts_uri(self) -> str:
        """An object for every Ray job that has worked on the run."""
        return self.meta_uri + "attempts/"

    @property
    def retried_uri(self) -> str:
        """Which run has begun to try failed rows again."""
        return self.meta_uri + "retried.json"

    @property
    def lease_uri(self) -> str:
        """Who writes here just now."""
        return self.meta_uri + "lease.json"
