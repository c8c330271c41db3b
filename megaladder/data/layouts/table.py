"""The layouts that rows are published in.

To add one: a line here, and a row as published, with what each verb makes of it, in
tests/data/layouts_published.py.

Rules that are not visible in the column names: where a file has a worked solution and a final
answer, SFT learns the solution and the answer is the gold one; without a column for it the gold
answer stands in the solution's last box.
"""

from __future__ import annotations

from collections import Counter

from megaladder.data.layouts import ask, layout, learn
from megaladder.data.layouts.ask import asks, asks_code
from megaladder.data.layouts.layout import USES, Layout, Stored, Use
from megaladder.data.layouts.learn import pair, reasoned
from megaladder.data.sources.source import RowSource
from megaladder.errors import DataError

GOLD = ("answer", "golden_answer", "ground_truth", "final_answer")
LM_EVAL = Stored(
    responses=("resps",),
    gold=("target", "doc.answer"),
    verdicts=("doc.samples.exact_matches", "exact_matches", "exact_match"),
    answers=("doc.samples.extracted_answers", "extracted_answers"),
    ids=("doc.id", "id", "doc.unique_id", "doc_id"),
    kind="doc.kind",
)

CONVERSATIONS = (
    Layout(
        "messages",
        "chat files; Tulu 3, Mixture-of-Thoughts, AM-DeepSeek-R1-Distilled, tool turns",
        ("messages",),
        learn.from_messages,
    ),
    Layout(
        "sharegpt",
        "ShareGPT; OpenThoughts, OpenThoughts3, Bespoke-Stratos, Sky-T1",
        ("conversations",),
        learn.from_sharegpt,
    ),
    Layout(
        "chatgpt-export",
        "conversations.json of ChatGPT's data export",
        ("mapping", "current_node"),
        learn.from_chatgpt_export,
    ),
    Layout("conversation", "WildChat, LMSYS-Chat", ("conversation",), learn.from_conversation),
    Layout(
        "prompt-completion", "TRL, OpenAI", ("prompt", "completion"), learn.from_prompt_completion
    ),
    Layout("prompt-response", "", ("prompt", "response"), pair("prompt", "response")),
    Layout("query-response", "MetaMathQA", ("query", "response"), pair("query", "response")),
    Layout(
        "question-response",
        "OpenOrca",
        ("question", "response"),
        pair("question", "response", "system_prompt"),
    ),
    Layout(
        "input-output",
        "Llama-Nemotron-Post-Training, AceReason-1.1-SFT",
        ("input", "output"),
        pair("input", "output", "system_prompt"),
    ),
    Layout(
        "alpaca",
        "Alpaca",
        ("instruction", "output"),
        learn.instruction("input", "output"),
        over=("input-output", "text"),
    ),
    Layout(
        "instruction-response",
        "Dolly, Magpie",
        ("instruction", "response"),
        learn.instruction("context", "response"),
    ),
    Layout(
        "preference",
        "UltraFeedback, TRL, LLaMA-Factory",
        ("chosen", "rejected"),
        learn.from_preference,
        over=("sharegpt",),
    ),
    Layout(
        "reasoning-content",
        "distilled R1 rows",
        ("input", "reasoning_content", "content"),
        reasoned("input", "reasoning_content", "content"),
    ),
    Layout(
        "medical-o1",
        "medical-o1-reasoning-SFT",
        ("Question", "Complex_CoT", "Response"),
        reasoned("Question", "Complex_CoT", "Response"),
    ),
    Layout(
        "text", "s1K_tokenized, reasoning_ladder (already templated)", ("text",), learn.from_text
    ),
    Layout(
        "scored",
        "Rethinking SFT",
        ("message|messages", "response", "advantage"),
        learn.from_scored,
        over=("messages",),
    ),
)
WORKED = (
    Layout(
        "question-solution",
        "LIMO",
        ("question", "solution"),
        pair("question", "solution"),
        asks("question", GOLD, boxed="solution"),
        over=("question-answer",),
    ),
    Layout(
        "problem-solution",
        "NuminaMath-1.5, DeepScaleR, MATH, MATH-500, LIMO's math and aime files",
        ("problem", "solution"),
        pair("problem", "solution"),
        asks("problem", GOLD, boxed="solution"),
        over=("problem-answer",),
    ),
    Layout(
        "numinamath-cot",
        "NuminaMath-CoT",
        ("problem", "solution", "messages"),
        learn.from_messages,
        asks("problem", GOLD, boxed="solution"),
    ),
    Layout(
        "openr1",
        "OpenR1-Math-220k",
        ("problem", "answer", "generations", "messages"),
        learn.from_messages,
        asks("problem", GOLD),
        Stored(("generations",), ("answer",), ("correctness_math_verify",), ids=("uuid",)),
        over=("numinamath-cot", "problem-solution", "verdicts"),
    ),
    Layout(
        "openthoughts-metadata",
        "OpenThoughts-114k (metadata)",
        ("problem", "deepseek_reasoning", "deepseek_solution"),
        reasoned("problem", "deepseek_reasoning", "deepseek_solution"),
        asks("problem", boxed="ground_truth_solution"),
    ),
    Layout(
        "openmath",
        "OpenMathReasoning, OpenMathInstruct-2",
        ("problem", "generated_solution", "expected_answer"),
        pair("problem", "generated_solution"),
        asks("problem", ("expected_answer",)),
    ),
    Layout(
        "deepmath",
        "DeepMath-103K",
        ("question", "final_answer", "r1_solution_1"),
        pair("question", "r1_solution_1"),
        asks("question", ("final_answer",)),
        Stored(("r1_solution_1",), ("final_answer",)),
        over=("verdicts",),
    ),
    Layout(
        "solution-final-answer",
        "OlympiadBench",
        ("question", "solution", "final_answer"),
        pair("question", "solution"),
        asks("question", ("final_answer",)),
        over=("question-answer",),
    ),
    Layout(
        "natural-reasoning",
        "natural_reasoning",
        ("question", "reference_answer", "responses"),
        learn.from_first_response,
        asks("question", ("reference_answer",)),
    ),
    Layout(
        "s1k",
        "s1K, s1K-1.1",
        (
            "question",
            "thinking_trajectories|deepseek_thinking_trajectory|gemini_thinking_trajectory",
            "attempt|deepseek_attempt|gemini_attempt",
        ),
        learn.from_s1k,
        asks("question", ("answer", "solution")),
        over=("question-solution", "question-answer", "text"),
    ),
    Layout(
        "problem-and-question-solution",
        "aimo-validation-aime",
        ("problem", "question", "solution", "answer"),
        pair("problem", "solution"),
        ask.ask_two_names,
        over=("problem-solution", "question-solution", "question-answer"),
    ),
    Layout(
        "question-answer",
        "GSM8K, WebInstruct-verified, `data make --form problem`",
        ("question", "answer"),
        pair("question", "answer"),
        asks("question", GOLD),
    ),
    Layout(
        "worked",
        "`data make`",
        ("question", "gold", "messages"),
        learn.from_messages,
        asks("question", ("gold",)),
    ),
)
PROBLEMS = (
    Layout(
        "verl",
        "DAPO-Math-17k, aime-2024.parquet, Skywork-OR1, Eurus-2-RL, verl's GSM8K",
        ("prompt", "reward_model"),
        ask=ask.ask_verl,
    ),
    Layout(
        "problem-answer",
        "AIME, AMC, Big-Math, Polaris, II-Thought",
        ("problem", "answer|golden_answer|ground_truth"),
        ask=asks("problem", GOLD),
    ),
    Layout(
        "problem-and-question",
        "aimo-validation-amc, rows with one text under both names",
        ("problem", "question", "answer"),
        ask=ask.ask_two_names,
        over=("problem-solution", "question-solution"),
    ),
    Layout(
        "capital-problem",
        "AIME_2024 (Maxwell-Jia)",
        ("Problem", "Answer"),
        ask=asks("Problem", ("Answer",)),
    ),
    Layout(
        "final-answer",
        "DeepMath problems",
        ("question", "final_answer"),
        ask=asks("question", ("final_answer",)),
    ),
    Layout(
        "prompt-answer",
        "TRL",
        ("prompt", "answer|ground_truth"),
        ask=asks("prompt", ("answer", "ground_truth"), complete=True),
    ),
    Layout(
        "prompt-solution",
        "TRL",
        ("prompt", "solution"),
        ask=asks("prompt", ("solution",), complete=True),
    ),
    Layout(
        "prompt-label", "slime", ("prompt", "label"), ask=asks("prompt", ("label",), complete=True)
    ),
    Layout(
        "rlvr",
        "RLVR-GSM, RLVR-MATH",
        ("messages", "ground_truth"),
        ask=asks("messages", ("ground_truth",)),
    ),
    Layout("orz", "Open-Reasoner-Zero", ("0", "1"), ask=ask.ask_orz),
    Layout("countdown", "Countdown-Tasks-3to4", ("nums", "target"), ask=ask.ask_countdown),
    Layout(
        "choices",
        "MMLU, ARC, CommonsenseQA",
        ("question", "choices", "answer|answerKey"),
        ask=ask.ask_choice,
        over=("question-answer",),
    ),
    Layout("options", "MMLU-Pro", ("question", "options", "answer"), ask=ask.ask_choice),
    Layout("gpqa", "GPQA", ("Question", "Correct Answer"), ask=ask.ask_gpqa),
    Layout("ifeval", "IFEval", ("prompt", "instruction_id_list", "kwargs"), ask=ask.ask_ifeval),
    Layout(
        "livecodebench",
        "LiveCodeBench",
        ("question_content", "public_test_cases"),
        ask=ask.ask_livecodebench,
    ),
    Layout(
        "apps",
        "APPS, TACO",
        ("question", "input_output"),
        ask=asks_code("question", "input_output"),
    ),
    Layout("deepcoder", "DeepCoder", ("problem", "tests"), ask=asks_code("problem", "tests")),
    Layout(
        "verifier-question",
        "rows that name their verifier",
        ("question", "verifier"),
        ask=asks("question", GOLD),
        over=("question-answer",),
    ),
    Layout(
        "verifier-problem",
        "rows that name their verifier",
        ("problem", "verifier"),
        ask=asks("problem", GOLD),
        over=("problem-answer",),
    ),
    Layout(
        "question-gold",
        "",
        ("question", "golden_answer|ground_truth"),
        ask=asks("question", GOLD),
        over=("question-answer",),
    ),
    Layout("question", "questions alone", ("question",), ask=asks("question"), weak=True),
    Layout("problem", "problems alone", ("problem",), ask=asks("problem"), weak=True),
)
SAMPLES = (
    Layout(
        "samples",
        "what `grade` takes and gives",
        ("gold", "response|responses"),
        stored=Stored(
            ("responses", "response"), ("gold",), answers=("extracted_answers", "answer")
        ),
        over=("verdicts",),
    ),
    Layout(
        "verdicts",
        "ids and verdicts alone",
        ("correct",),
        stored=Stored(("responses", "response"), ("gold",), answers=("answer",)),
    ),
    Layout(
        "lm-eval",
        "lm-eval's samples_*.jsonl, ours and the s1 fork's",
        ("doc", "resps"),
        stored=LM_EVAL,
        over=("verdicts",),
    ),
    Layout(
        "limo-eval",
        "LIMO's evaluation outputs",
        ("question", "generated_responses"),
        stored=Stored(
            ("generated_responses",),
            ("gold_answer",),
            ("answers_correctness",),
            ("generated_answers",),
        ),
        over=("verdicts",),
    ),
    Layout(
        "rethinking-eval",
        "Rethinking SFT's budget evaluation",
        ("problem", "responses", "gold", "accuracy"),
        stored=Stored(("responses",), ("gold",), ("accuracy",), ("prediction",)),
        over=("samples",),
    ),
    Layout(
        "evalchemy",
        "evalchemy's results",
        ("problem|question", "model_outputs|model_output"),
        stored=Stored(
            ("model_outputs", "model_output"),
            ("expected_answer", "answer"),
            answers=("model_answers", "model_answer"),
        ),
        over=("verdicts",),
    ),
    Layout(
        "verl-rollouts",
        "verl's rollout_data_dir and validation_data_dir",
        ("input", "output", "gts"),
        stored=Stored(("output",), ("gts",), ("acc",), ("pred",), ids=("input",)),
        over=("verdicts",),
    ),
    Layout(
        "qwen-math-eval",
        "Qwen2.5-Math's evaluation and its forks (simpleRL)",
        ("question", "gt", "code"),
        stored=Stored(("code",), ("gt",), ("score",), ("pred",), ids=("idx",)),
        over=("verdicts",),
    ),
    Layout(
        "nemo-skills",
        "NeMo-Skills' output.jsonl",
        ("problem", "expected_answer", "generation"),
        stored=Stored(
            ("generation",),
            ("expected_answer",),
            ("symbolic_correct", "is_correct"),
            ("predicted_answer",),
            ids=("id", "problem"),
        ),
        over=("verdicts",),
    ),
)
LAYOUTS = {one.name: one for one in (*CONVERSATIONS, *WORKED, *PROBLEMS, *SAMPLES)}


def recognise(path: str, key_sets: Counter[frozenset[str]], use: Use) -> Layout:
    """The layout of rows with these columns, for a use. Raises DataError for none or several."""
    return layout.recognise(LAYOUTS, path, key_sets, use)


def layout_of(source: RowSource, name: str, use: Use) -> Layout:
    """The layout called `name`, or, for auto, the one that the rows have. Raises DataError."""
    able = [one.name for one in LAYOUTS.values() if one.can(use)]
    if name != "auto" and name not in able:
        raise DataError(
            f"data.format: expected auto or a layout for {USES[use]} ({', '.join(able)}), found"
            f" {name!r}; fix: data.format: auto"
        )
    return LAYOUTS[name] if name != "auto" else recognise(source.path, source.key_sets(), use)
