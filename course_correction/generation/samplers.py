"""Sample continuations of prefills from a model in this process. Knows nothing of judges, triggers or files."""

import logging
import re
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import Any

from course_correction.base.errors import UsageError
from course_correction.generation.chat_format import decode_continuation, render_prompt
from course_correction.generation.protocol import Completion, Prefill

logger = logging.getLogger(__name__)


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
        from course_correction.generation.shared_prefix import shares_prefixes

        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.paths_sampled = self.tokens_sampled = 0
        self.shares = share_prefix and shares_prefixes(model)
        if share_prefix and not self.shares:
            logger.info(f"{model.config.model_type}: prefixes cannot be shared, so each prefill is computed separately.")

    def sample(self, begun: Sequence[Prefill], settings: Any) -> list[Completion]:
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
        written: list[Completion | None] = [None] * len(begun)
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
                written[index] = Completion(text, len(continuation.token_ids), continuation.ended)
        self.paths_sampled += len(written)
        self.tokens_sampled += sum(row.num_tokens for row in written)
        return written

    def _continue(self, batch: list[list[int]], prefills: list[tuple], begun: Sequence[Prefill], settings: Any) -> list:
        from course_correction.generation.decoding import continue_prefills, continue_trees, grow_tree

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
        logger.info(f"Out of memory with {rows} rows: continuing with at most {self.batch_size}. --batch_size sets this.")
        size = self.batch_size
        return [group[start : start + size] for group in batch for start in range(0, len(group), size)]

    def _check_lengths(self, prefills: list[tuple], begun: Sequence[Prefill], max_new_tokens: int) -> None:
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
