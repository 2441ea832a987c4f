"""Course-correction: measure it (C²-Eval), make data that teaches it (C²-Syn), train it (DPO).

The modules follow the flow of the data; each imports only what stands above it here:
`run_files`, `settings` -> `sources` -> `prefixes` -> `loading` -> `generation` -> `preferences` -> `judging` ->
`metrics` -> `report`; `objective` -> `grouped_trainer` stand beside them, above nothing but `train_dpo.py`.
"""

__version__ = "0.1.0"
