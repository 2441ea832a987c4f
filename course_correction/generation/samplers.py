"""Sample continuations of prefills from a model in this process. Knows nothing of judges, triggers or files."""

import logging
import re
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING

from course_correction.base.errors import UsageError
from course_correction.generation.chat_format import decode_continuation, render_prompt
from course_correction.generation.protocol import Completion, Model, Prefill, SamplingSettings, Tokenizer

if TYPE_CHECKING:
    from course_correction.generation.decoding import Continuation

logger = logging.getLogger(__name__)


class ModelSampler:
    """Samples from a model in this process, the prefills of one request from a common trunk if the model allows it.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        batch_size: Rows computed together, at least those of one request; halved when memory runs out.
        share_prefix: False computes every prefill separately.
    """

    units_at_once = 1

    def __init__(self, model: Model, tokenizer: Tokenizer, batch_size: int, share_prefix: bool = True) -> None:
        """Log a message if trunks cannot be shared."""
        from course_correction.generation.shared_prefix import shares_prefixes

        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.paths_sampled = self.tokens_sampled = 0
        self.shares = share_prefix and shares_prefixes(model)
        if share_prefix and not self.shares:
            logger.info(f"{model.config.model_type}: prefixes cannot be shared, so each prefill is computed separately.")

    def sample(self, prefills: Sequence[Prefill], settings: SamplingSettings) -> list[Completion]:
        """Return the continuation of each prefill, in order.

        Raises:
            UsageError: If a prefill is too long for the model, or memory is too small for a single row.
        """
        prompt = cache(lambda request: tuple(render_prompt(self.tokenizer, request)))
        ids = [(row.prompt_ids or prompt(row.request)) + row.answer_ids for row in prefills]
        self._check_lengths(ids, prefills, settings.max_new_tokens)
        if self.shares:
            groups = [list(group) for _, group in groupby(range(len(ids)), key=lambda index: prefills[index].request)]
        else:
            # Rows of similar length share a batch, which keeps padding short.
            groups = [[index] for index in sorted(range(len(ids)), key=lambda index: len(ids[index]))]
        completions: dict[int, Completion] = {}
        while groups:
            batch = [groups.pop(0)]
            while groups and sum(map(len, batch)) + len(groups[0]) <= self.batch_size:
                batch.append(groups.pop(0))
            try:
                continuations = self._continue(batch, ids, prefills, settings)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                groups = self._halve(batch) + groups
                continue
            for index, continuation in zip([index for group in batch for index in group], continuations, strict=True):
                text = decode_continuation(self.tokenizer, prefills[index].answer_ids, continuation.token_ids)
                completions[index] = Completion(text, len(continuation.token_ids), continuation.ended)
        self.paths_sampled += len(completions)
        self.tokens_sampled += sum(row.num_tokens for row in completions.values())
        return [completions[index] for index in range(len(prefills))]

    def _continue(
        self,
        batch: list[list[int]],
        ids: list[tuple[int, ...]],
        prefills: Sequence[Prefill],
        settings: SamplingSettings,
    ) -> "list[Continuation]":
        from course_correction.generation.decoding import continue_prefills, continue_trees, grow_tree

        rows = [index for group in batch for index in group]
        keys = [prefills[index].draw_key for index in rows]
        if not self.shares:
            return continue_prefills(self.model, self.tokenizer, [ids[index] for index in rows], keys, settings)
        trees = [grow_tree([ids[index] for index in group]) for group in batch]
        return continue_trees(self.model, self.tokenizer, trees, keys, settings)

    def _halve(self, batch: list[list[int]]) -> list[list[int]]:
        """Return the groups of a batch that did not fit into memory, and lower `batch_size` for the batches to come."""
        import torch

        rows = sum(map(len, batch))
        if rows == 1:
            raise UsageError(
                "Out of memory with a single row. Lower max_new_tokens, load the model in 4-bit, or use a smaller one."
            )
        torch.cuda.empty_cache()
        self.batch_size = rows // 2
        logger.info(f"Out of memory with {rows} rows: continuing with at most {self.batch_size} (--batch_size).")
        size = self.batch_size
        return [group[start : start + size] for group in batch for start in range(0, len(group), size)]

    def _check_lengths(self, ids: list[tuple[int, ...]], prefills: Sequence[Prefill], max_new_tokens: int) -> None:
        room = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        for row_ids, row in zip(ids, prefills, strict=True):
            if room and len(row_ids) + max_new_tokens > room:
                name = row.draw_key.split("\x1f")[0]
                raise UsageError(
                    f"{name}: a prefill of {len(row_ids)} tokens and {max_new_tokens} new tokens exceed the model's {room}. "
                    "Remove this row, or lower max_new_tokens."
                )


def is_out_of_memory(error: Exception) -> bool:
    """Whether the accelerator or the CPU ran out of memory; the CPU's allocator raises a plain RuntimeError."""
    return bool(re.search("out of memory|can't allocate memory", str(error)))
