"""Course-correction: measure it (C²-Eval), make data that teaches it (C²-Syn), train it (DPO).

The modules follow the flow of the data; each imports only what stands above it here (tests/test_commands.py):

- every script's: `run_files`, `public`, `settings`, `processes`, `progress`
- requests and cuts, behind `c2_syn.py` and `c2_eval.py`: `prefixes`, `pku500`, `sources`, `preferences`
- models and their continuations: `loading`, `prefills`, `shared_prefix`, `generation`, `server`, `samplers`,
  `server_sampler`, `units`
- verdicts: `metrics`, `agreement`, `shares`, `judging`, `pattern_judge`, `judge_prompt`, `server_judge`, `model_judges`,
  `calibration`
- C²-Eval and its reports, behind `eval.py`: `drift`, `report`, `suite_tables`, `suites`, `headline`, `html_report`,
  `measuring`, `evaluation`
- its suites: `harness`, `general_suite`, `dynamics_suite`, `benign_suite`, `ciphers`, `jailbreaks`, `jailbreak_judges`,
  `jailbreak_suite`
- training, behind `train_dpo.py`: `objective_settings`, `objective`, `training_data`, `group_batches`, `frozen_layers`,
  `training_loop`, `grouped_trainer`
- the Hub, and other programs: `cards`, `push_settings`, `publishing`, `published_metric`, `published_results`,
  `published_training`, `builders`, `inspect_provider`, `demo`
"""

__version__ = "0.1.0"
