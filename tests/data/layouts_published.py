"""Rows of published data sets, as `published` describes them."""

from __future__ import annotations

from data.layouts_stored import STORED
from data.published import GSM8K, MATH, S1, SHARED, TURNS, WORK, A, Published, Q, verl

PUBLISHED = (
    # conversations
    Published("chat files (OpenAI, TRL)", {"messages": TURNS}, WORK),
    Published("allenai/tulu-3-sft-mixture", {"id": "a", "messages": TURNS, "source": "x"}, WORK),
    Published(
        "open-r1/Mixture-of-Thoughts", {"messages": TURNS, "num_tokens": 9, "source": "x"}, WORK
    ),
    Published(
        "a-m-team/AM-DeepSeek-R1-Distilled-1.4M",
        {
            "messages": [
                {**TURNS[0], "info": {"source": "x", "reference_answer": A}},
                {**TURNS[1], "info": {"think_content": "t", "answer_content": WORK}},
            ]
        },
        WORK,
    ),
    Published(
        "tool turns",
        {
            "messages": [
                TURNS[0],
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [
                        {"type": "function", "function": {"name": "add", "arguments": "{}"}}
                    ],
                },
                {"role": "tool", "content": "5"},
                TURNS[1],
            ],
            "tools": [{"type": "function", "function": {"name": "add", "parameters": {}}}],
        },
        WORK,
    ),
    Published(
        "conversations.json of ChatGPT's data export",
        {
            "title": "t",
            "mapping": {
                name: {
                    "parent": parent,
                    "message": {
                        "author": {"role": role},
                        "content": {"content_type": "text", "parts": [text]},
                    },
                }
                for name, parent, role, text in (
                    ("a", None, "user", Q),
                    ("b", "a", "assistant", WORK),
                )
            },
            "current_node": "b",
        },
        WORK,
    ),
    Published("ShareGPT", {"id": "x", "conversations": SHARED}, WORK),
    Published("open-thoughts/OpenThoughts-114k", {"system": "s", "conversations": SHARED}, WORK),
    Published(
        "open-thoughts/OpenThoughts3-1.2M",
        {"difficulty": 8, "source": "x", "domain": "math", "conversations": SHARED},
        WORK,
    ),
    Published(
        "bespokelabs/Bespoke-Stratos-17k",
        {
            "system": "s",
            "conversations": [{"from": "user", "value": Q}, SHARED[1] | {"from": "assistant"}],
        },
        WORK,
    ),
    Published("allenai/WildChat-1M", {"conversation_hash": "x", "conversation": TURNS}, WORK),
    Published("TRL prompt-completion, text", {"prompt": Q, "completion": WORK}, WORK),
    Published("TRL prompt-completion, turns", {"prompt": TURNS[:1], "completion": TURNS[1:]}, WORK),
    Published("prompt and response", {"prompt": Q, "response": WORK}, WORK),
    Published(
        "meta-math/MetaMathQA",
        {"type": "x", "query": Q, "original_question": Q, "response": WORK},
        WORK,
    ),
    Published(
        "Open-Orca/OpenOrca",
        {"id": "x", "system_prompt": "s", "question": Q, "response": WORK},
        WORK,
    ),
    Published(
        "nvidia/Llama-Nemotron-Post-Training-Dataset",
        {
            "input": TURNS[:1],
            "output": WORK,
            "category": "math",
            "license": "cc-by-4.0",
            "reasoning": "on",
            "generator": "x",
            "used_in_training": "Ultra",
            "version": "v1",
            "system_prompt": "detailed thinking on",
        },
        WORK,
    ),
    Published(
        "nvidia/AceReason-1.1-SFT",
        {"category": "math", "source": "x", "input": Q, "output": WORK},
        WORK,
    ),
    Published(
        "tatsu-lab/alpaca", {"instruction": Q, "input": "", "output": WORK, "text": "t"}, WORK
    ),
    Published("alpaca with input", {"instruction": "Add.", "input": "2, 3", "output": WORK}, WORK),
    Published(
        "databricks/databricks-dolly-15k",
        {"instruction": Q, "context": "", "response": WORK, "category": "x"},
        WORK,
    ),
    Published(
        "HuggingFaceH4/ultrafeedback_binarized",
        {"prompt": Q, "prompt_id": "x", "chosen": TURNS, "rejected": TURNS, "score_chosen": 8.0},
        WORK,
    ),
    Published("TRL preference pairs, text", {"prompt": Q, "chosen": WORK, "rejected": "4"}, WORK),
    Published(
        "Congliu/Chinese-DeepSeek-R1-Distill-data-110k",
        {"input": Q, "reasoning_content": "t", "content": WORK, "repo_name": "x", "score": 9},
        WORK,
    ),
    Published(
        "FreedomIntelligence/medical-o1-reasoning-SFT",
        {"Question": Q, "Complex_CoT": "t", "Response": WORK},
        WORK,
    ),
    Published("simplescaling/s1K_tokenized", {"text": "<|im_start|>user"}, "<|im_start|>user"),
    Published("reasoning_ladder", {"text": "<|im_start|>user"}, "<|im_start|>user"),
    Published(
        "Rethinking SFT's parquet",
        {"message": TURNS[:1], "response": WORK, "advantage": 1.0, "answer": A},
        WORK,
    ),
    # problems with a worked answer
    Published("GAIR/LIMO", {"question": Q, "solution": WORK, "answer": A}, WORK, MATH),
    Published(
        "LIMO's evaluation data",
        {"id": 60, "problem": Q, "solution": WORK, "answer": A, "url": "x"},
        WORK,
        MATH,
    ),
    Published(
        "AI-MO/NuminaMath-1.5",
        {
            "problem": Q,
            "solution": WORK,
            "answer": A,
            "problem_type": "Algebra",
            "question_type": "math-word-problem",
            "problem_is_valid": "Yes",
            "solution_is_valid": "Yes",
            "source": "x",
            "synthetic": False,
        },
        WORK,
        MATH,
    ),
    Published(
        "AI-MO/NuminaMath-CoT",
        {"source": "x", "problem": Q, "solution": WORK, "messages": TURNS},
        WORK,
        MATH,
    ),
    Published(
        "agentica-org/DeepScaleR-Preview-Dataset",
        {"problem": Q, "answer": A, "solution": WORK},
        WORK,
        MATH,
    ),
    Published(
        "hendrycks/MATH",
        {"problem": Q, "level": "Level 1", "type": "Algebra", "solution": WORK},
        WORK,
        MATH,
    ),
    Published(
        "HuggingFaceH4/MATH-500",
        {"problem": Q, "solution": WORK, "answer": A, "subject": "x", "level": 1, "unique_id": "a"},
        WORK,
        MATH,
    ),
    Published(
        "open-r1/OpenR1-Math-220k",
        {
            "problem": Q,
            "solution": WORK,
            "answer": A,
            "problem_type": "Algebra",
            "question_type": "math-word-problem",
            "source": "x",
            "uuid": "u",
            "is_reasoning_complete": [True, True],
            "generations": [WORK, "It is \\boxed{4}."],
            "correctness_math_verify": [True, False],
            "finish_reasons": None,
            "correctness_count": 1,
            "messages": TURNS,
        },
        WORK,
        MATH,
        2,
    ),
    Published(
        "open-thoughts/OpenThoughts-114k, metadata",
        {
            "problem": Q,
            "deepseek_reasoning": "t",
            "deepseek_solution": WORK,
            "ground_truth_solution": WORK,
            "domain": "math",
            "source": "x",
            "test_cases": None,
            "starter_code": None,
        },
        WORK,
        MATH,
    ),
    Published(
        "nvidia/OpenMathReasoning",
        {
            "expected_answer": A,
            "problem_type": "has_answer_extracted",
            "problem_source": "x",
            "generation_model": "m",
            "pass_rate_72b_tir": "0.5",
            "problem": Q,
            "generated_solution": WORK,
            "inference_mode": "cot",
        },
        WORK,
        MATH,
    ),
    Published(
        "zwhe99/DeepMath-103K",
        {
            "question": Q,
            "final_answer": A,
            "difficulty": 5.0,
            "topic": "x",
            "r1_solution_1": WORK,
            "r1_solution_2": WORK,
            "r1_solution_3": WORK,
        },
        WORK,
        MATH,
        1,
    ),
    Published(
        "facebook/natural_reasoning",
        {
            "question": Q,
            "reference_answer": A,
            "responses": [{"response_model": "m", "response": WORK}],
        },
        WORK,
        MATH,
    ),
    Published(
        "simplescaling/s1K",
        {
            "solution": A,
            "question": Q,
            "cot_type": "math",
            "source_type": "x",
            "metadata": "{}",
            "cot": None,
            "thinking_trajectories": ["step"],
            "attempt": A,
            "text": "templated",
        },
        S1,
        MATH,
    ),
    Published(
        "simplescaling/s1K-1.1",
        {
            "solution": A,
            "question": Q,
            "gemini_thinking_trajectory": None,
            "gemini_attempt": None,
            "deepseek_thinking_trajectory": "step",
            "deepseek_attempt": A,
        },
        S1,
        MATH,
    ),
    Published("openai/gsm8k", {"question": Q, "answer": "2+3=5\n#### 5"}, "2+3=5\n#### 5", GSM8K),
    Published(
        "TIGER-Lab/WebInstruct-verified",
        {"id": 1, "question": Q, "answer": A, "answer_type": "Integer", "category": "x"},
        A,
        MATH,
    ),
    Published("`data make`", {"id": "x", "question": Q, "gold": A, "messages": TURNS}, WORK, MATH),
    # problems alone
    Published("BytedTsinghua-SIA/DAPO-Math-17k", verl("math_dapo"), None, MATH),
    Published(
        "aime-2024.parquet",
        verl("aime_2024", extra_info={"index": 0, "raw_problem": Q}),
        None,
        MATH,
    ),
    Published("verl's GSM8K", verl("openai/gsm8k"), None, GSM8K),
    Published(
        "Skywork/Skywork-OR1-RL-Data",
        verl("train-math", reward_model={"ground_truth": '["5"]', "style": "rule"}),
        None,
        MATH,
    ),
    Published("PRIME-RL/Eurus-2-RL-Data", verl("numina_olympiads"), None, MATH),
    Published("HuggingFaceH4/aime_2024", {"id": 60, "problem": Q, "answer": A}, None, MATH),
    Published(
        "SynthLabsAI/Big-Math-RL-Verified",
        {"problem": Q, "answer": A, "source": "x", "domain": ["a"], "llama8b_solve_rate": 0.5},
        None,
        MATH,
    ),
    Published(
        "math-ai/amc23",
        {"id": 0, "problem": Q, "answer": 5.0, "url": "x", "question": Q},
        None,
        MATH,
    ),
    Published(
        "Maxwell-Jia/AIME_2024",
        {"ID": "2024-I-1", "Problem": Q, "Solution": WORK, "Answer": 5},
        None,
        MATH,
    ),
    Published(
        "Hothan/OlympiadBench",
        {
            "id": 1,
            "question": Q,
            "solution": [WORK],
            "final_answer": [A],
            "is_multiple_answer": False,
        },
        WORK,
        MATH,
    ),
    Published("TRL prompt and answer", {"prompt": Q, "answer": A}, None, MATH),
    Published("TRL prompt and solution", {"prompt": TURNS[:1], "solution": A}, None, MATH),
    Published("slime", {"prompt": TURNS[:1], "label": A, "metadata": {}}, None, MATH),
    Published(
        "allenai/RLVR-MATH",
        {"messages": TURNS[:1], "ground_truth": A, "dataset": "MATH"},
        None,
        MATH,
    ),
    Published(
        "Open-Reasoner-Zero/orz_math_57k_collection",
        [
            {"from": "human", "value": Q},
            {"from": "assistant", "ground_truth": {"value": A, "pass_at_n": None}},
        ],
        None,
        MATH,
    ),
    Published(
        "Jiayi-Pan/Countdown-Tasks-3to4", {"target": 5, "nums": [2, 3]}, None, ("5", "countdown")
    ),
    Published(
        "cais/mmlu",
        {"question": Q, "subject": "x", "choices": ["4", "5", "6", "7"], "answer": 1},
        None,
        ("B", "choice"),
    ),
    Published(
        "TIGER-Lab/MMLU-Pro",
        {
            "question_id": 1,
            "question": Q,
            "options": ["4", "5", "6"],
            "answer": "B",
            "answer_index": 1,
            "cot_content": "",
            "category": "x",
        },
        None,
        ("B", "choice"),
    ),
    Published(
        "allenai/ai2_arc",
        {
            "id": "x",
            "question": Q,
            "choices": {"text": ["4", "5"], "label": ["1", "2"]},
            "answerKey": "2",
        },
        None,
        ("B", "choice"),
    ),
    Published(
        "Idavidrein/gpqa",
        {
            "Question": Q,
            "Correct Answer": "5",
            "Incorrect Answer 1": "4",
            "Incorrect Answer 2": "6",
            "Incorrect Answer 3": "7",
        },
        None,
        ("B", "choice"),
    ),
    Published(
        "google/IFEval",
        {
            "key": 1,
            "prompt": Q,
            "instruction_id_list": ["punctuation:no_comma"],
            "kwargs": [{"num_highlights": None}],
        },
        None,
        ("", "ifeval"),
    ),
    Published(
        "livecodebench/code_generation_lite",
        {
            "question_title": "Sum",
            "question_content": Q,
            "question_id": "x",
            "starter_code": "",
            "public_test_cases": '[{"input": "2 3", "output": "5", "testtype": "stdin"}]',
            "private_test_cases": '[{"input": "1 1", "output": "2", "testtype": "stdin"}]',
            "metadata": "{}",
        },
        None,
        ('[{"input": "2 3", "output": "5", "testtype": "stdin"}]', "code"),
    ),
    Published(
        "codeparrot/apps",
        {
            "problem_id": 1,
            "question": Q,
            "solutions": "[]",
            "input_output": '{"inputs": ["2 3"], "outputs": ["5"]}',
            "difficulty": "x",
            "url": "x",
            "starter_code": "",
        },
        None,
        ('{"inputs": ["2 3"], "outputs": ["5"]}', "code"),
    ),
    Published(
        "agentica-org/DeepCoder-Preview-Dataset",
        {"problem": Q, "tests": '{"inputs": ["2 3"], "outputs": ["5"]}'},
        None,
        ('{"inputs": ["2 3"], "outputs": ["5"]}', "code"),
    ),
    Published(
        "`data make countdown --form problem`",
        {
            "id": "x",
            "question": Q,
            "answer": A,
            "verifier": "countdown",
            "numbers": [2, 3],
            "target": 5,
        },
        None,
        ("5", "countdown"),
    ),
    *STORED,
)
