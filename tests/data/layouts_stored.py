"""Rows of published evaluations and rollouts, as `published` describes them."""

from __future__ import annotations

from data.published import DOC, MATH, WORK, A, Published, Q

STORED = (
    # stored samples
    Published("`grade`, one response", {"id": 1, "gold": A, "response": WORK}, graded=1),
    Published("`grade`, a list", {"id": 1, "gold": A, "responses": [WORK, "4"]}, graded=2),
    Published(
        "lm-eval samples_*.jsonl",
        {
            "doc_id": 0,
            "doc": DOC,
            "target": A,
            "arguments": {"gen_args_0": {"arg_0": Q}},
            "resps": [[WORK]],
            "filtered_resps": [A],
            "exact_match": 1.0,
        },
        graded=1,
    ),
    Published(
        "s1's fork of lm-eval",
        {
            "doc_id": 0,
            "doc": DOC,
            "target": A,
            "resps": [[WORK, "4"]],
            "filtered_resps": [[WORK, "4"]],
            "exact_match": 1,
            "exact_matches": [1, 0],
            "extracted_answers": [A, "4"],
        },
        graded=2,
    ),
    Published(
        "`eval` samples_*.jsonl",
        {
            "doc_id": 0,
            "doc": {
                "id": "a",
                "question": Q,
                "answer": A,
                "kind": "math",
                "samples": {
                    "exact_matches": [True, False],
                    "extracted_answers": [A, "4"],
                    "num_tokens": [3, 2],
                    "fingerprint": "f",
                },
            },
            "target": A,
            "resps": [[WORK, "4"]],
            "filtered_resps": [A, "4"],
            "exact_match": 1.0,
        },
        graded=2,
    ),
    Published(
        "LIMO's evaluation output",
        {
            "question": Q,
            "generated_responses": [WORK, "4"],
            "id": 60,
            "source": "aime",
            "generated_answers": [A, "4"],
            "gold_answer": A,
            "is_correct": True,
            "answers_correctness": [True, False],
        },
        graded=2,
    ),
    Published(
        "evalchemy's AIME24",
        {
            "id": 60,
            "problem": Q,
            "expected_answer": A,
            "reference_solution": WORK,
            "model_outputs": [WORK, "4"],
            "model_answers": [A, "4"],
        },
        graded=2,
    ),
    Published(
        "Rethinking SFT's budget evaluation",
        {
            "problem": Q,
            "solution": WORK,
            "responses": [WORK, "4"],
            "response_ids": [[1, 2], [3]],
            "prediction": [A, "4"],
            "gold": A,
            "tokens": [2, 1],
            "accuracy": [True, False],
        },
        WORK,
        MATH,
        2,
    ),
    # verl/trainer/ppo/ray_trainer.py, _dump_generations, with what math_dapo's reward adds
    Published(
        "verl's rollouts",
        {"input": Q, "output": WORK, "gts": A, "score": 1.0, "step": 10, "acc": True, "pred": A},
        graded=1,
    ),
    # QwenLM/Qwen2.5-Math, evaluation/math_eval.py
    Published(
        "Qwen2.5-Math's evaluation",
        {
            "idx": 0,
            "question": Q,
            "gt_cot": WORK,
            "gt": A,
            "level": 2,
            "type": "Algebra",
            "solution": WORK,
            "answer": A,
            "code": [WORK, "4"],
            "pred": [A, "4"],
            "report": [None, None],
            "score": [True, False],
        },
        WORK,
        MATH,
        2,
    ),
    # NVIDIA-NeMo/Skills, nemo_skills/evaluation/evaluator/math_grader.py
    Published(
        "NeMo-Skills",
        {
            "id": "aime24-0",
            "problem": Q,
            "expected_answer": A,
            "reference_solution": WORK,
            "generation": WORK,
            "num_generated_tokens": 12,
            "predicted_answer": A,
            "symbolic_correct": True,
        },
        graded=1,
    ),
)
