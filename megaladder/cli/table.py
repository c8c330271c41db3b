"""The table of verbs: each is a config class, a function that takes the config, a line of help.

To add a verb, add a line to `VERBS`. Config class and function are named as "module:attribute" and
imported only when their verb runs, so `megaladder --help` stays fast and a missing package breaks
one verb, not all. The function returns its exit status, or None for 0; it raises a
`MegaladderError` for what the user must act on (one message, no traceback).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """One command.

    `config` may also name a function `(args) -> config class` where the class depends on the file.
    """

    name: str
    config: str
    run: str
    help: str
    group: str
    # function `(config) -> bool`: whether it is all done already, and was said
    finished: str | None = None
    takes_yaml: bool = False  # a first argument without dashes is a run.yaml
    # config.parallel says how many ranks; started here unless torchrun did
    distributed: bool = False
    # what follows the name in the line to type under --help; None = run.yaml, or what is required
    example: str | None = None


VERBS: tuple[Verb, ...] = (
    Verb(
        "check",
        "megaladder.preflight.check:config_class",
        "megaladder.preflight.check:run_check",
        "resolve a run.yaml: batch arithmetic, layout, memory, a data sample; starts nothing",
        "Train",
        takes_yaml=True,
    ),
    Verb(
        "import-config",
        "megaladder.preflight.import_config:ImportConfig",
        "megaladder.preflight.import_config:run_import_config",
        "a file of TRL, LLaMA-Factory, axolotl or verl → a run.yaml; what was mapped, refused and why",
        "Train",
    ),
    Verb(
        "dryrun",
        "megaladder.dryrun.verb:config_class",
        "megaladder.dryrun.verb:run_dryrun",
        "one update of a run.yaml on all its ranks, without GPUs: bytes, every collective, and"
        " whether the ranks fit together",
        "Train",
        takes_yaml=True,
    ),
    Verb(
        "sft",
        "megaladder.config.sft:SftConfig",
        "megaladder.train.sft:run_sft",
        "supervised fine-tuning; starts as many ranks as the layout needs, resumes by itself",
        "Train",
        finished="megaladder.finished:answer_training",
        takes_yaml=True,
        distributed=True,
    ),
    Verb(
        "grpo",
        "megaladder.config.grpo:GrpoConfig",
        "megaladder.train.grpo:run_grpo",
        "GRPO, Dr.GRPO, DAPO, GSPO, CISPO; starts the engine and as many ranks as the layout needs,"
        " resumes by itself",
        "Train",
        finished="megaladder.finished:answer_training",
        takes_yaml=True,
        distributed=True,
    ),
    Verb(
        "convert hf-to-megatron",
        "megaladder.config.verbs.convert:HfToMegatronConfig",
        "megaladder.checkpoints_conv.verbs:run_hf_to_megatron",
        "Hugging Face folder → megatron-core checkpoint that loads at any layout; streams",
        "Train",
        finished="megaladder.finished:answer_conversion",
    ),
    Verb(
        "convert megatron-to-hf",
        "megaladder.config.verbs.convert:MegatronToHfConfig",
        "megaladder.checkpoints_conv.verbs:run_megatron_to_hf",
        "checkpoint of a run, or a converted one → Hugging Face folder; streams",
        "Train",
        finished="megaladder.finished:answer_conversion",
    ),
    Verb(
        "convert adapter",
        "megaladder.config.verbs.convert:AdapterConfig",
        "megaladder.checkpoints_conv.verbs:run_adapter",
        "checkpoint of a run with lora → PEFT folder",
        "Train",
    ),
    Verb(
        "convert merge",
        "megaladder.config.verbs.convert:MergeConfig",
        "megaladder.checkpoints_conv.verbs:run_merge",
        "model and PEFT adapter → model with the adapter merged in; streams",
        "Train",
    ),
    Verb(
        "convert verify",
        "megaladder.config.verbs.convert:VerifyConfig",
        "megaladder.checkpoints_conv.verbs:run_verify",
        "compare a Hugging Face folder with a checkpoint: every tensor, and the logits",
        "Train",
    ),
    Verb(
        "plan",
        "megaladder.config.verbs.plan:PlanConfig",
        "megaladder.plan.verb:run_plan",
        "layouts for a model on N GPUs: memory per GPU by part, predicted step time, tokens/s/GPU,"
        " MFU; SFT and GRPO",
        "Train",
    ),
    Verb(
        "bench train",
        "megaladder.config.verbs.bench:BenchTrainConfig",
        "megaladder.tools.bench_training:run_bench_train",
        "tokens/s of an SFT step against plain transformers loops; or at a 14B model's layer"
        " shapes: TFLOP/s, MFU",
        "Bench",
    ),
    Verb(
        "bench kernels",
        "megaladder.config.verbs.bench:BenchKernelsConfig",
        "megaladder.tools.bench_kernels:run_bench_kernels",
        "the loss head against its peers: time, bandwidth, memory",
        "Bench",
    ),
    Verb(
        "bench convert",
        "megaladder.config.verbs.convert:BenchConvertConfig",
        "megaladder.tools.bench_convert:run_bench_convert",
        "seconds and memory of a conversion against a plain copy of the files",
        "Bench",
    ),
    Verb(
        "replay",
        "megaladder.config.verbs.replay:ReplayConfig",
        "megaladder.replay.verb:run_replay",
        "a step of a run once more from its record, compared bit by bit with what was recorded",
        "Train",
    ),
    Verb(
        "doctor",
        "megaladder.preflight.doctor:DoctorConfig",
        "megaladder.preflight.doctor:run_doctor",
        "what is installed, what each feature needs, the command that adds it",
        "Train",
    ),
    Verb(
        "examples",
        "megaladder.preflight.examples:ExamplesConfig",
        "megaladder.preflight.examples:run_examples",
        "run files, recipes and launch scripts that come along: listed, or copied",
        "Train",
        example="configs/sft_gsm8k_cpu.yaml --out .",
    ),
    Verb(
        "eval",
        "megaladder.config.verbs.evaluation:eval_config",
        "megaladder.evaluation.verb:run_eval",
        "benchmarks: generate, grade, append; resumable; lm-eval files, scores with intervals",
        "Evaluate",
        finished="megaladder.finished:answer_evaluation",
        example="--model DIR --benchmark gsm8k,my_exam.jsonl",
        takes_yaml=True,
    ),
    Verb(
        "chat",
        "megaladder.serving.settings:ChatConfig",
        "megaladder.serving.chat:run_chat",
        "talk with a model or with a run's newest export; one answer with --prompt",
        "Use",
        example='runs/sft --prompt "What is 2+3?"',
    ),
    Verb(
        "serve",
        "megaladder.serving.settings:ServeConfig",
        "megaladder.serving.serve:run_serve",
        "an OpenAI-compatible address for a model, by vLLM's server, until Ctrl-C",
        "Use",
        example="runs/sft --port 8000",
    ),
    Verb(
        "push",
        "megaladder.serving.settings:PushConfig",
        "megaladder.serving.push:run_push",
        "a model with a model card of what was recorded, to a folder or to the hub",
        "Use",
        example="runs/sft --to published/my-model --evals runs/eval/step_640",
    ),
    Verb(
        "bench rollout",
        "megaladder.config.verbs.bench:BenchRolloutConfig",
        "megaladder.tools.bench_rollout:run_bench_rollout",
        "tokens per second of our engine against bare vllm.LLM.generate",
        "Bench",
    ),
    Verb(
        "grade",
        "megaladder.config.verbs.grade:GradeConfig",
        "megaladder.analysis.grade:run_grade",
        "grade stored responses with the grader of RL and the benchmarks",
        "Evaluate",
    ),
    Verb(
        "analyze pass-at-k",
        "megaladder.config.verbs.grade:PassAtKConfig",
        "megaladder.analysis.studies.pass_at_k:run_pass_at_k",
        "avg@n, unbiased pass@k, cov@n, maj@n of graded rows, with intervals over problems",
        "Evaluate",
    ),
    Verb(
        "analyze transfer",
        "megaladder.config.verbs.analysis:TransferConfig",
        "megaladder.analysis.studies.transfer:run_transfer",
        "transferability index v1, v2: how much of the gain in maths arrives elsewhere",
        "Analyze",
    ),
    Verb(
        "analyze scaling",
        "megaladder.config.verbs.analysis:ScalingConfig",
        "megaladder.analysis.studies.scaling:run_scaling",
        "test-time scaling: control, scaling, performance; sequential against parallel",
        "Analyze",
    ),
    Verb(
        "analyze ladder",
        "megaladder.config.verbs.analysis:LadderConfig",
        "megaladder.analysis.studies.ladder:run_ladder",
        "AIME24 by difficulty tier from stored samples; potential and stability",
        "Analyze",
    ),
    Verb(
        "analyze predict",
        "megaladder.config.verbs.analysis:PredictConfig",
        "megaladder.analysis.studies.predict:run_predict",
        "which SFT metric predicts the score after RL; which runs to take into RL",
        "Analyze",
    ),
    Verb(
        "analyze trajectory",
        "megaladder.config.verbs.analysis:TrajectoryConfig",
        "megaladder.analysis.studies.trajectory:run_trajectory",
        "dip and recovery over checkpoints; which checkpoint to keep",
        "Analyze",
    ),
    Verb(
        "analyze shift",
        "megaladder.config.verbs.analysis:ShiftConfig",
        "megaladder.analysis.shift.verb:run_shift",
        "KL, token rank shift and PCA shift of a tuned model (needs torch)",
        "Analyze",
    ),
    Verb(
        "analyze budget",
        "megaladder.config.verbs.analysis:BudgetConfig",
        "megaladder.analysis.studies.budget:run_budget",
        "accuracy if every answer had been cut at a token budget",
        "Analyze",
    ),
    Verb(
        "analyze compare",
        "megaladder.config.verbs.analysis:CompareConfig",
        "megaladder.analysis.studies.compare:run_compare",
        "is this difference real? paired tests over problems; equal compute",
        "Analyze",
    ),
    Verb(
        "power",
        "megaladder.config.verbs.grade:PowerConfig",
        "megaladder.analysis.power.verb:run_power",
        "how many problems and samples show a difference, from stored samples or given numbers",
        "Analyze",
    ),
    Verb(
        "report",
        "megaladder.config.verbs.analysis:ReportConfig",
        "megaladder.analysis.report.verb:run_report",
        "one self-contained HTML page over run and eval folders, and a CSV with its numbers",
        "Analyze",
    ),
    Verb(
        "watch",
        "megaladder.watch.settings:WatchConfig",
        "megaladder.watch.verb:run_watch",
        "the same page live in a browser on this machine: where runs stand, curves, rollouts to read",
        "Analyze",
        example="runs/sft runs/grpo",
    ),
    Verb(
        "study",
        "megaladder.config.verbs.analysis:StudyConfig",
        "megaladder.study.verb:run_study",
        "a published study from data to findings with verdicts, at toy or paper scale; resumable",
        "Studies",
    ),
    Verb(
        "data get",
        "megaladder.config.verbs.data:GetConfig",
        "megaladder.curate.get:run_get",
        "published problem sets (gsm8k, math500, …) from the hub into plain files",
        "Data",
    ),
    Verb(
        "data stats",
        "megaladder.config.verbs.data:StatsConfig",
        "megaladder.curate.stats:run_stats",
        "rows, schema, token lengths, loss-token share, duplicates, one rendered sample",
        "Data",
    ),
    Verb(
        "data decontaminate",
        "megaladder.config.verbs.data:DecontaminateConfig",
        "megaladder.curate.decontaminate:run_decontaminate",
        "n-gram overlap with benchmarks, row by row, and a clean copy",
        "Data",
    ),
    Verb(
        "data score",
        "megaladder.config.verbs.data:ScoreConfig",
        "megaladder.curate.score:run_score",
        "rule score, its parts, style features and quality levels as new columns",
        "Data",
    ),
    Verb(
        "data select",
        "megaladder.config.verbs.data:SelectConfig",
        "megaladder.curate.select.run:run_select",
        "seeded, staged selection by a recipe; counts and reasons after every stage",
        "Data",
    ),
    Verb(
        "data sample",
        "megaladder.config.verbs.data:sample_config_class",
        "megaladder.curate.teacher.sample:run_sample",
        "rejection sampling from a teacher through the shared engine and grader; resumable",
        "Data",
        finished="megaladder.finished:answer_sampling",
    ),
    Verb(
        "data make",
        "megaladder.config.verbs.data:make_config_class",
        "megaladder.curate.make.run:run_make",
        "generated arithmetic or countdown with verified reasoning traces",
        "Data",
    ),
)
