"""Run train_dpo.py sharded by FSDP2 on CPUs, as a process of torchrun.

accelerate takes FSDP for GPUs alone, though torch shards on CPUs too (by gloo). Fails if the weights are not sharded.
"""

import sys
from pathlib import Path
from typing import Any

from accelerate.state import DistributedType, PartialState

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
made = PartialState.__init__


def claim_gpus(self: PartialState, *arguments: Any, **options: Any) -> None:
    made(self, *arguments, **options)
    if self.distributed_type == DistributedType.MULTI_CPU:
        # From which accelerate goes on to FSDP where the environment asks for it.
        self.distributed_type = DistributedType.MULTI_GPU


def main() -> None:
    PartialState.__init__ = claim_gpus
    from torch.distributed.tensor import DTensor

    import train_dpo
    from course_correction.grouped_trainer import GroupedDPOTrainer
    from course_correction.settings import run_script

    computed = GroupedDPOTrainer._compute_loss

    def compute(self: Any, model: Any, *arguments: Any) -> Any:
        for name, weights in (("policy", model), ("reference", self.ref_model)):
            if weights is not None:
                parts = [part for part in weights.parameters() if part.requires_grad or name == "reference"]
                assert parts and all(isinstance(part, DTensor) for part in parts), f"The {name} is not sharded."
                print(f"{name} sharded", flush=True)
        return computed(self, model, *arguments)

    GroupedDPOTrainer._compute_loss = compute
    run_script(train_dpo.main)


if __name__ == "__main__":
    main()
