"""The settings of pushing. The token comes from `hf auth login` or HF_TOKEN, never from settings."""

from dataclasses import dataclass, field
from typing import Literal

from course_correction.base.errors import UsageError


@dataclass
class PushSettings:
    """Whether a script's results go to the Hub. The token comes from `hf auth login` or HF_TOKEN, never from here."""

    push_to_hub: bool = field(default=False, metadata={"help": "push the result to the Hub"})
    hub_private_repo: bool = field(default=True, metadata={"help": "a repository that is made is private"})


@dataclass
class DatasetPushSettings(PushSettings):
    """Where a dataset goes."""

    hub_dataset_id: str | None = field(default=None, metadata={"help": "owner/name of the dataset on the Hub"})
    gated: Literal["auto", "manual"] | None = field(
        default=None, metadata={"help": "readers must ask: granted at once (auto) or by you (manual)"}
    )

    def check_push(self) -> None:
        """Refuse a push without a place, and a place without a push.

        Raises:
            UsageError: Naming the setting that is missing.
        """
        if self.push_to_hub and not self.hub_dataset_id:
            raise UsageError("push_to_hub needs --hub_dataset_id owner/name.")
        if self.gated and not self.push_to_hub:
            raise UsageError("gated has no effect without --push_to_hub true.")


@dataclass
class ResultPushSettings(PushSettings):
    """Where an evaluation goes."""

    hub_model_id: str | None = field(default=None, metadata={"help": "owner/name of the evaluated model on the Hub"})
    hub_dataset_id: str | None = field(
        default=None, metadata={"help": "the C²-Eval dataset on the Hub that the items are; --items where that is an id"}
    )
    create_pr: bool = field(default=False, metadata={"help": "open a pull request: the model is somebody else's"})

    def check_push(self) -> None:
        """Refuse a push without a place, and a place without a push.

        Raises:
            UsageError: Naming the setting that is missing.
        """
        if self.push_to_hub and not self.hub_model_id:
            raise UsageError("push_to_hub needs --hub_model_id owner/name.")
        if self.create_pr and not self.push_to_hub:
            raise UsageError("create_pr has no effect without --push_to_hub true.")
