"""The settings of sampling, and the choice of a backend: a model in this process or a server."""

from dataclasses import dataclass, field
from typing import Any

from course_correction.base.errors import UsageError
from course_correction.generation.chat_format import check_prefill
from course_correction.generation.protocol import Sampler
from course_correction.generation.samplers import ModelSampler


@dataclass
class SamplerSettings:
    """Where continuations come from and how many at once. Settings of c2_syn.py and eval.py alike."""

    batch_size: int = field(default=160, metadata={"help": "rows computed together, at least those of one request"})
    share_prefix: bool = field(default=True, metadata={"help": "compute a request's common trunk once, where possible"})
    server_url: str | None = field(
        default=None, metadata={"help": "an OpenAI-compatible server to sample from, such as http://localhost:8000/v1"}
    )
    server_model: str | None = field(default=None, metadata={"help": "name of the model there, if it is another one"})
    max_parallel_calls: int = field(default=64, metadata={"help": "calls to the server at once"})
    call_timeout: float = field(default=300.0, metadata={"help": "seconds for a call"})
    chat_template: str | None = field(
        default=None, metadata={"help": "a .jinja file, for a tokenizer that has no chat template or another one"}
    )

    def check(self) -> None:
        """Refuse values outside their range."""
        for name in ("batch_size", "max_parallel_calls", "call_timeout"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} is {getattr(self, name)}, but must be above 0.")


def check_backend(by_server: bool, server_url: str | None, setting: str) -> None:
    """Refuse a server without a URL, and a URL that nobody would use.

    Raises:
        UsageError: Naming the setting that chooses.
    """
    if by_server and not server_url:
        raise UsageError(f"{setting}: openai needs server_url, such as http://localhost:8000/v1.")
    if server_url and not by_server:
        raise UsageError(f"server_url is used with {setting}: openai only.")


def load_sampler(name: str, revision: str | None, loading: dict[str, Any], settings: SamplerSettings) -> Sampler:
    """Return the server's sampler if settings name a server, else load the model into this process.

    Args:
        name: The model; its tokenizer is loaded here in any case.
        revision: Its revision on the Hub.
        loading: Further arguments of `load_model`.
        settings: How to sample.
    """
    from course_correction.generation.loading import load_model, load_tokenizer
    from course_correction.generation.openai_client import Server
    from course_correction.generation.server_sampler import ServerSampler

    # The tokenizer first: it is small, and a missing chat template shows before the weights are loaded.
    tokenizer = load_tokenizer(name, revision, chat_template=settings.chat_template)
    check_prefill(tokenizer)
    if settings.server_url:
        limits = {"max_parallel": settings.max_parallel_calls, "timeout_s": settings.call_timeout}
        server = Server(settings.server_url, "sampling", "--server_url", **limits)
        return ServerSampler(server, settings.server_model or name, tokenizer)
    return ModelSampler(
        load_model(name, revision=revision, **loading), tokenizer, settings.batch_size, settings.share_prefix
    )
