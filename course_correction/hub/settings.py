"""Settings of a push to the Hub. The token comes from `hf auth login` or HF_TOKEN, never from settings."""

from dataclasses import dataclass
from typing import Literal

from course_correction.base.errors import UsageError
from course_correction.base.settings import setting


@dataclass
class PushSettings:
    """Whether a script pushes its result."""

    push_to_hub: bool = setting(False, "push the result to the Hub", group="Hub", identity=(), common=True)
    hub_private_repo: bool = setting(True, "make a new repository private", group="Hub", identity=())


@dataclass
class DatasetPushSettings(PushSettings):
    """Where a dataset is pushed."""

    hub_dataset_id: str | None = setting(None, "owner/name of the dataset on the Hub", group="Hub", identity=(), common=True)
    gated: Literal["auto", "manual"] | None = setting(
        None, "readers must ask for access, which is granted at once (auto) or by you (manual)", group="Hub", identity=()
    )

    def check_push(self) -> None:
        """Refuse a push without a repository, and gating without a push.

        Raises:
            UsageError: Naming the setting that is missing.
        """
        if self.push_to_hub and not self.hub_dataset_id:
            raise UsageError("push_to_hub needs --hub_dataset_id owner/name.")
        if self.gated and not self.push_to_hub:
            raise UsageError("gated has no effect without --push_to_hub true.")


@dataclass
class ResultPushSettings(PushSettings):
    """Where an evaluation is pushed."""

    hub_model_id: str | None = setting(
        None, "owner/name of the evaluated model on the Hub", group="Hub", identity=(), common=True
    )
    hub_dataset_id: str | None = setting(
        None, "the C²-Eval dataset on the Hub that holds the items; default: --items, if that is on the Hub",
        group="Hub", identity=(),
    )  # fmt: skip
    create_pr: bool = setting(
        False, "open a pull request, for a model that belongs to somebody else", group="Hub", identity=()
    )

    def check_push(self) -> None:
        """Refuse a push without a repository, and a pull request without a push.

        Raises:
            UsageError: Naming the setting that is missing.
        """
        if self.push_to_hub and not self.hub_model_id:
            raise UsageError("push_to_hub needs --hub_model_id owner/name.")
        if self.create_pr and not self.push_to_hub:
            raise UsageError("create_pr has no effect without --push_to_hub true.")
