"""Run train_dpo.py sharded by FSDP2 or by DeepSpeed ZeRO-3 on CPUs, as a process of torchrun.

accelerate takes both for GPUs alone, though they shard on CPUs too (by gloo). The environment says which, as `accelerate
launch` would set it. Fails if the weights are not sharded.
"""

import os
import sys
from pathlib import Path
from typing import Any

from accelerate.state import DistributedType, PartialState

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
ZERO3 = "ACCELERATE_USE_DEEPSPEED"
made = PartialState.__init__


def claim_gpus(self: PartialState, cpu: bool = False, **options: Any) -> None:
    if self.initialized or ZERO3 not in os.environ:
        made(self, cpu, **options)
    else:
        # accelerate asks for GPUs where it sees this; transformers reads it too, later.
        use = os.environ.pop(ZERO3)
        made(self, True, **options)
        os.environ[ZERO3] = use
        from deepspeed import comm

        # Else it compiles a faster way of its own.
        comm.torch.build_shm_op = lambda: None
        comm.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    if self.distributed_type == DistributedType.MULTI_CPU:
        # From these accelerate selects DeepSpeed or FSDP by the environment.
        self.distributed_type = DistributedType.DEEPSPEED if ZERO3 in os.environ else DistributedType.MULTI_GPU


def main() -> None:
    PartialState.__init__ = claim_gpus
    from torch.distributed.tensor import DTensor

    import train_dpo
    from course_correction.base.console import run_script
    from course_correction.training.trainer import GroupedDPOTrainer

    computed = GroupedDPOTrainer._compute_loss

    def is_sharded(part: Any) -> bool:
        # A shard of DeepSpeed's is rounded up to a whole element.
        return isinstance(part, DTensor) or (hasattr(part, "ds_tensor") and part.ds_tensor.numel() <= part.ds_numel // 2 + 1)

    def compute(self: Any, model: Any, *arguments: Any) -> Any:
        for name, weights in (("policy", model), ("reference", self.ref_model)):
            if weights is not None:
                parts = [part for part in weights.parameters() if part.requires_grad or name == "reference"]
                assert parts and all(map(is_sharded, parts)), f"The {name} is not sharded."
                print(f"{name} sharded", flush=True)
        return computed(self, model, *arguments)

    GroupedDPOTrainer._compute_loss = compute
    run_script(train_dpo.main)


if __name__ == "__main__":
    main()
