"""The settings of sampling, and the choice of a backend: a model in this process or a server. Knows no items or paths."""

from dataclasses import dataclass
from typing import Any

from course_correction.base.errors import UsageError
from course_correction.base.settings import setting
from course_correction.generation.chat_format import check_prefill
from course_correction.generation.protocol import Sampler
from course_correction.generation.samplers import ModelSampler


@dataclass
class SamplerSettings:
    """Where continuations come from and how many at once. Settings of c2_syn.py and eval.py alike."""

    batch_size: int = setting(
        160,
        "rows computed together; at least those of one request",
        group="sampling",
        identity="model",
        common=True,
        at_least=1,
    )
    share_prefix: bool = setting(
        True,
        "compute the common prefix of a request's paths once, if the model allows it",
        group="sampling",
        identity="model",
    )
    server_url: str | None = setting(
        None, "OpenAI-compatible server to sample from, such as http://localhost:8000/v1", group="model", identity="model"
    )
    server_model: str | None = setting(
        None, "name of the model on the server, if it differs", group="model", identity="model"
    )
    max_parallel_calls: int = setting(
        64, "largest number of calls to the server at once", group="sampling", identity=(), at_least=1
    )
    call_timeout: float = setting(300.0, "seconds per call to the server", group="sampling", identity=(), above=0)
    chat_template: str | None = setting(
        None, ".jinja file to use instead of the tokenizer's chat template", group="model", identity="model"
    )


def check_backend(by_server: bool, server_url: str | None, backend_setting: str) -> None:
    """Refuse a server without a URL, and a URL that the backend does not use.

    Raises:
        UsageError: Naming the setting that chooses the backend.
    """
    if by_server and not server_url:
        raise UsageError(f"{backend_setting}: openai needs server_url, such as http://localhost:8000/v1.")
    if server_url and not by_server:
        raise UsageError(f"server_url is set, but {backend_setting} is not openai. Set it to openai, or remove server_url.")


def load_sampler(name: str, revision: str | None, loading: dict[str, Any], settings: SamplerSettings) -> Sampler:
    """Return the server's sampler if the settings name a server, else load the model into this process.

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
        server = Server(
            settings.server_url,
            "sampling",
            "--server_url",
            max_parallel=settings.max_parallel_calls,
            timeout_s=settings.call_timeout,
        )
        return ServerSampler(server, settings.server_model or name, tokenizer)
    model = load_model(name, revision=revision, **loading)
    return ModelSampler(model, tokenizer, settings.batch_size, settings.share_prefix)
