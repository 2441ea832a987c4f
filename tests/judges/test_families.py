"""The family that a model's name tells."""

import pytest

from course_correction.judges.families import model_family


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("smollm2-135m", "smollm2"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2"),
        ("qwen2.5-coder-1.5b", "qwen2.5"),
        ("Qwen/Qwen2-7B-Instruct", "qwen2"),
        ("Qwen/Qwen3-4B", "qwen3"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3"),
        ("mistralai/Mistral-7B-Instruct-v0.2", "mistral"),
        ("HuggingFaceH4/zephyr-7b-beta", "zephyr"),
        ("lmsys/vicuna-7b-v1.5", "vicuna"),
        ("microsoft/Phi-3-mini-128k-instruct", "phi"),
        ("THUDM/glm-4-9b-chat", "glm"),
        ("cognitive/dolphin-7b", None),
        ("runs/llama-2-merged/", "llama-2"),
        ("llama-2-runs/my-model", None),
    ],
)
def test_the_last_part_of_a_name_tells_the_family(name, family):
    assert model_family(name) == family
