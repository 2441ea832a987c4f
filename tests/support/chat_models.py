"""Chat tokenizers and tiny random models, built on the spot. Nothing is fetched."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.support.rows import read_data

LLAMA_2_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)


CHATML_TEMPLATE = (
    "{{% for message in messages %}}{{% if loop.first and message['role'] != 'system' %}}"
    "{{{{ '<|im_start|>system\n{system}<|im_end|>\n' }}}}{{% endif %}}"
    "{{{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{ '<|im_start|>assistant\n' }}}}{{% endif %}}"
)


LLAMA_3_TEMPLATE = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


@dataclass(frozen=True)
class ChatFamily:
    """A family of chat templates: its special tokens and the texts that a prefill is checked against.

    Attributes:
        template: Jinja source.
        special_tokens: In order of their ids; each is one token.
        bos_token: Begins a conversation; `None` where the family has none.
        end_of_turn: The token that closes the assistant's turn.
        assistant_header: The text right before an answer.
        user_turn_end: The text that closes the user's turn.
        sentencepiece: Whether the tokenizer marks words by a leading space, as SentencePiece does.
    """

    template: str
    special_tokens: tuple[str, ...]
    bos_token: str | None
    end_of_turn: str
    assistant_header: str
    user_turn_end: str
    sentencepiece: bool = False


_CHATML = {
    "special_tokens": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "bos_token": None,
    "end_of_turn": "<|im_end|>",
    "assistant_header": "<|im_start|>assistant\n",
    "user_turn_end": "<|im_end|>\n",
}


FAMILIES = {
    "llama-2": ChatFamily(
        LLAMA_2_TEMPLATE, ("<unk>", "<s>", "</s>"), "<s>", "</s>", " [/INST]", " [/INST]", sentencepiece=True
    ),
    "chatml-qwen2": ChatFamily(CHATML_TEMPLATE.format(system="You are a helpful assistant."), **_CHATML),
    "chatml-smollm2": ChatFamily(
        CHATML_TEMPLATE.format(system="You are a helpful AI assistant named SmolLM, trained by Hugging Face"), **_CHATML
    ),
    "llama-3": ChatFamily(
        LLAMA_3_TEMPLATE,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
}


def _training_texts() -> Iterator[str]:
    for row in read_data("requests_train"):
        yield from (row["request"], row["full_harmful_response"], row["correction"])
    for row in read_data("benign_train"):
        yield from (row["prompt"], row["response"])


def build_tokenizer(family: ChatFamily) -> Any:
    """Return a fast BPE tokenizer of 600 tokens that adds the BOS by itself, as the family's real ones do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if family.sentencepiece:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
        alphabet = [chr(code) for code in range(33, 127)]
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=list(family.special_tokens), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_training_texts(), trainer)
    if family.bos_token:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{family.bos_token} $A",
            pair=f"{family.bos_token} $A $B",
            special_tokens=[(family.bos_token, tokenizer.token_to_id(family.bos_token))],
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=family.bos_token,
        eos_token=family.end_of_turn,
        pad_token=family.end_of_turn,
        additional_special_tokens=list(family.special_tokens),
    )
    fast.chat_template = family.template
    return fast


def build_tiny_model(architecture: str, tokenizer: Any, **overrides: Any) -> Any:
    """Return a random float32 model of two layers with grouped heads, whose logits lie well apart.

    Args:
        architecture: llama, qwen2, qwen3 or mistral.
        tokenizer: Decides the vocabulary and the end token.
        overrides: Values of the config.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    # So small a model is slowed by threads that wait for one another.
    torch.set_num_threads(1)
    options = {"sliding_window": None} if architecture == "mistral" else {}
    config = AutoConfig.for_model(
        architecture,
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 2048,
            "initializer_range": 0.4,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
            "tie_word_embeddings": False,
            **options,
            **overrides,
        },
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval()
