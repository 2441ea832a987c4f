"""Where continuations come from: a model in this process, or a server. Knows nothing of judges, triggers or files."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from typing import Any, Protocol

from course_correction.base.console import announce
from course_correction.base.errors import UsageError
from course_correction.prefills import check_prefill, decode_continuation, render_prompt


@dataclass(frozen=True)
class BegunAnswer:
    """An answer to go on with.

    Attributes:
        request: What the user asked.
        answer_ids: Token ids of the answer begun, `()` where it has not.
        draw_key: Names the random numbers of what follows.
        prompt_ids: Stand before the answer in the chat prompt's stead, where given.
    """

    request: str
    answer_ids: tuple[int, ...]
    draw_key: str
    prompt_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Written:
    """What was written after an answer begun.

    Attributes:
        text: Its leading space included.
        num_tokens: Without the end token.
        ended: Whether the answer ended by itself.
    """

    text: str
    num_tokens: int
    ended: bool


class Sampler(Protocol):
    """Goes on with answers.

    Attributes:
        tokenizer: The model's.
        units_at_once: How many units of work are best in flight together.
        paths_written: Since the start.
        tokens_written: Likewise.
    """

    tokenizer: Any
    units_at_once: int
    paths_written: int
    tokens_written: int

    def go_on(self, begun: Sequence[BegunAnswer], settings: Any) -> list[Written]:
        """Return what follows each answer, in order. Answers to one request stand together."""
        ...


class ModelSampler:
    """Samples from a model in this process, the prefills of one request from a common trunk where that can be done.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        batch_size: Rows computed together, at least those of one request; halved when memory runs out.
        share_prefix: False computes every prefill anew.
    """

    units_at_once = 1

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, share_prefix: bool = True) -> None:
        """Say so where trunks cannot be shared."""
        from course_correction.shared_prefix import shares_prefixes

        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.paths_written = self.tokens_written = 0
        self.shares = share_prefix and shares_prefixes(model)
        if share_prefix and not self.shares:
            announce(f"{model.config.model_type}: prefixes cannot be shared here, so every prefill is computed by itself.")

    def go_on(self, begun: Sequence[BegunAnswer], settings: Any) -> list[Written]:
        """Return what follows each answer, in order.

        Raises:
            UsageError: If an answer is too long for the model, or if memory does not suffice for a single row.
        """
        prompt = cache(lambda request: tuple(render_prompt(self.tokenizer, request)))
        prefills = [(row.prompt_ids or prompt(row.request)) + row.answer_ids for row in begun]
        self._check_lengths(prefills, begun, settings.max_new_tokens)
        if self.shares:
            groups = [list(group) for _, group in groupby(range(len(begun)), key=lambda index: begun[index].request)]
        else:
            # Rows of like length share a batch, so that little is spent on padding.
            groups = [[index] for index in sorted(range(len(begun)), key=lambda index: len(prefills[index]))]
        written: list[Written | None] = [None] * len(begun)
        while groups:
            batch = [groups.pop(0)]
            while groups and sum(map(len, batch)) + len(groups[0]) <= self.batch_size:
                batch.append(groups.pop(0))
            try:
                found = self._continue(batch, prefills, begun, settings)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                groups = self._halve(batch) + groups
                continue
            for index, continuation in zip([index for group in batch for index in group], found, strict=True):
                text = decode_continuation(self.tokenizer, begun[index].answer_ids, continuation.token_ids)
                written[index] = Written(text, len(continuation.token_ids), continuation.ended)
        self.paths_written += len(written)
        self.tokens_written += sum(row.num_tokens for row in written)
        return written

    def _continue(self, batch: list[list[int]], prefills: list[tuple], begun: Sequence[BegunAnswer], settings: Any) -> list:
        from course_correction.generation import continue_prefills, continue_trees, grow_tree

        rows = [index for group in batch for index in group]
        keys = [begun[index].draw_key for index in rows]
        if not self.shares:
            return continue_prefills(self.model, self.tokenizer, [prefills[index] for index in rows], keys, settings)
        trees = [grow_tree([prefills[index] for index in group]) for group in batch]
        return continue_trees(self.model, self.tokenizer, trees, keys, settings)

    def _halve(self, batch: list[list[int]]) -> list[list[int]]:
        """Return the groups of a batch that did not fit, to be run in smaller batches from now on."""
        import torch

        rows = sum(map(len, batch))
        if rows == 1:
            raise UsageError(
                "Out of memory with a single row. Lower max_new_tokens, load in 4-bit, or take a smaller model."
            )
        torch.cuda.empty_cache()
        self.batch_size = rows // 2
        announce(f"Out of memory with {rows} rows: going on with at most {self.batch_size}. Set --batch_size to keep to it.")
        size = self.batch_size
        return [group[start : start + size] for group in batch for start in range(0, len(group), size)]

    def _check_lengths(self, prefills: list[tuple], begun: Sequence[BegunAnswer], max_new_tokens: int) -> None:
        room = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        for prefill, row in zip(prefills, begun, strict=True):
            if room and len(prefill) + max_new_tokens > room:
                name = row.draw_key.split("\x1f")[0]
                raise UsageError(
                    f"{name}: a prefill of {len(prefill)} tokens and {max_new_tokens} new ones pass the model's {room}. "
                    "Leave that row out, or lower max_new_tokens."
                )


def is_out_of_memory(error: Exception) -> bool:
    """Whether the accelerator's or the CPU's allocator gave up; the CPU's raises a plain RuntimeError."""
    return bool(re.search("out of memory|can't allocate memory", str(error)))


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
    from course_correction.loading import load_model, load_tokenizer
    from course_correction.server import Server
    from course_correction.server_sampler import ServerSampler

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
