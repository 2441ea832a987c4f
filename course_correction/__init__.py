"""Course-correction: measure it (C²-Eval), make data that teaches it (C²-Syn), train it (DPO).

One package per stage. A package imports only from those above it in this list, which import-linter checks (`make check`):

- `base`: errors, files, settings, console, processes, resumable rows
- `statistics`: rates, intervals, agreement
- `synthesis`: requests, cuts, triggers, ranked groups, builders
- `generation`: models, chat formats, sampling
- `judges`: verdicts on paths, and how well judges agree with labels
- `report`: tables, plots, pages
- `hub`: cards and pushes
- `training`: the objective and the trainers
- `suites`: jailbreak, general, benign, dynamics
- `evaluation`: C²-Eval's stages
- `integrations`: what Inspect loads
"""

__version__ = "0.1.0"
