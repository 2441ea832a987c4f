"""Fixtures for all tests: chat tokenizers and tiny random models, built on the spot. Nothing is fetched."""

import logging
import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from tests.support.chat_models import FAMILIES, build_tiny_model, build_tokenizer

pytest_plugins = ["tests.support.evaluation", "tests.support.server", "tests.support.training", "tests.support.hub"]


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, Any]:
    """One tokenizer a family of chat templates, by the family's name."""
    return {name: build_tokenizer(family) for name, family in FAMILIES.items()}


@pytest.fixture(scope="session")
def tiny_tokenizer(tokenizers: dict[str, Any]) -> Any:
    """The ChatML tokenizer that the tiny models share."""
    return tokenizers["chatml-smollm2"]


@pytest.fixture(scope="session")
def tiny_llama(tiny_tokenizer: Any) -> Any:
    """A tiny random Llama; tests must not change it."""
    return build_tiny_model("llama", tiny_tokenizer)


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Any, tiny_tokenizer: Any) -> Path:
    """The tiny Llama and its tokenizer as a folder that `from_pretrained` reads."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    tiny_llama.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def messages_are_recorded(caplog: pytest.LogCaptureFixture) -> None:
    """Let `caplog` record the package's messages, as scripts show them."""
    caplog.set_level(logging.INFO, "course_correction")
