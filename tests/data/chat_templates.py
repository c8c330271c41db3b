"""Minimal chat templates in our own words, each with the behaviours of a published family that
matter for what is trained."""

from __future__ import annotations

from dataclasses import dataclass, field

SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|end_of_text|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<s>", "</s>", "[INST]", "[/INST]"),
    *("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "[gMASK]", "<sop>", "<|user|>"),
    *("<|assistant|>", "<|system|>", "<|observation|>", "<|end|>"),
    *("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# every assistant turn is printed without its thinking; the prompt opens one
DEEPSEEK_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}<｜User｜>{{ m.content }}"
    "{% else %}<｜Assistant｜>{{ m.content.split('</think>')[-1] }}<｜end▁of▁sentence｜>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)
_LLAMA_TURNS = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
)
_LLAMA_OPENS = "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
# the first one opens the next answer whether it is asked to or not
LLAMA_3_FIRST = "{{ bos_token }}" + _LLAMA_TURNS + _LLAMA_OPENS
LLAMA_3 = (
    "{{ bos_token }}"
    + _LLAMA_TURNS
    + "{% if add_generation_prompt %}"
    + _LLAMA_OPENS
    + "{% endif %}"
)
LLAMA_3_DATE = (
    "{{ bos_token }}{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}"
    "{% else %}{% set day = '26 Jul 2024' %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ day }}\n\n<|eot_id|>"
    + LLAMA_3.removeprefix("{{ bos_token }}")
)
# turns have to alternate; a blank stands between prompt and answer; nothing opens an answer
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content | trim }}</s>{% endif %}{% endfor %}"
)
_GEMMA_TURN = (
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n"
)
_GEMMA_OPENS = "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
GEMMA_2 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}{% for m in messages %}" + _GEMMA_TURN + "{% endfor %}" + _GEMMA_OPENS
)
# the system message goes in front of the first user's text
GEMMA_3 = (
    "{{ bos_token }}{% set first = messages[0].content + '\n\n' if messages[0].role == 'system' else"
    " '' %}{% for m in messages if m.role != 'system' %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ first if loop.first else '' }}"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}" + _GEMMA_OPENS
)
# no token ends a turn: the first one of the next turn does
GLM_4 = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
GLM_4_5 = (
    "[gMASK]<sop>{% for m in messages %}{% if m.role != 'assistant' %}<|{{ m.role }}|>\n"
    "{{ m.content }}{% else %}<|assistant|>\n<think>{{ m.reasoning_content or '' }}</think>\n"
    "{{ m.content | trim }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is defined and not"
    " enable_thinking %}{{ '\n<think></think>' }}{% endif %}{% endif %}"
)
INTERNLM = "{{ bos_token }}" + CHATML
# a default system message, and tools in it
QWEN_2_5 = (
    "<|im_start|>system\n{{ messages[0].content if messages[0].role == 'system' else 'You are"
    " helpful.' }}{% if tools %}\n<tools>{% for t in tools %}\n{{ t | tojson }}{% endfor %}\n</tools>"
    "{% endif %}<|im_end|>\n{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}{% for c in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_THINKS = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role != 'assistant' %}{{ m.content }}"
    "{% else %}{% set text = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = m.reasoning_content or (m.content.split('</think>')[0].split('<think>')[-1]"
    " if '</think>' in m.content else '') %}"
    "{% if loop.index0 > ns.last %}<think>\n{{ thought.strip('\n') }}\n</think>\n\n{% endif %}"
    "{{ text }}{% endif %}<|im_end|>\n{% endfor %}"
)
# thinking of earlier turns is dropped, line breaks before an answer too; it may be switched off
QWEN_3 = (
    _THINKS
    + "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined"
    " and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
QWEN_3_THINKING = (
    _THINKS + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
# a finished conversation ends with a further token
PHI_3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}<|endoftext|>{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """A template with its tokenizer's special tokens, and what is learned of the answers `12` and
    `<think>\\n3*4=12\\n</think>\\n\\n12` (None: refused with that word)."""

    template: str
    eos: str
    closing: str
    plain: str
    thinking: str
    bos: str | None = None
    multi_turn: bool = True  # each of several turns without thinking can be trained
    arguments: dict = field(default_factory=dict)


THOUGHT = "3*4=12\n</think>\n\n12"
_CHATML = ("<|im_end|>", "<|im_end|>", "12", f"<think>\n{THOUGHT}")
_LLAMA = ("<|eot_id|>", "<|eot_id|>", "12", f"<think>\n{THOUGHT}", "<|begin_of_text|>")
FAMILIES = {
    "deepseek-r1-distill": Family(
        *(
            DEEPSEEK_R1,
            "<｜end▁of▁sentence｜>",
            "<｜end▁of▁sentence｜>",
            "\n</think>\n\n12",
            THOUGHT,
        ),
        bos="<｜begin▁of▁sentence｜>",
        multi_turn=False,
    ),
    "llama-3-first": Family(LLAMA_3_FIRST, *_LLAMA),
    "llama-3": Family(LLAMA_3, *_LLAMA),
    "llama-3.1-date": Family(LLAMA_3_DATE, *_LLAMA),
    "mistral": Family(MISTRAL, "</s>", "</s>", " 12", f" <think>\n{THOUGHT}", bos="<s>"),
    "gemma-2": Family(GEMMA_2, "<eos>", "<end_of_turn>", "12", f"<think>\n{THOUGHT}", bos="<bos>"),
    "gemma-3": Family(GEMMA_3, "<eos>", "<end_of_turn>", "12", f"<think>\n{THOUGHT}", bos="<bos>"),
    "glm-4": Family(GLM_4, "<|endoftext|>", "<|user|>", "\n12", f"\n<think>\n{THOUGHT}"),
    "internlm-2.5": Family(INTERNLM, "</s>", "<|im_end|>", "12", f"<think>\n{THOUGHT}", bos="<s>"),
    "qwen-2.5": Family(QWEN_2_5, *_CHATML),
    "qwen-2.5-base": Family(CHATML, "<|endoftext|>", *_CHATML[1:]),
    "qwen-3-2507": Family(CHATML, *_CHATML),
    "qwen-3": Family(
        QWEN_3, *_CHATML[:2], "<think>\n\n</think>\n\n12", f"<think>\n{THOUGHT}", multi_turn=False
    ),
    "qwen-3-thinking-2507": Family(
        QWEN_3_THINKING, *_CHATML[:2], "\n</think>\n\n12", THOUGHT, multi_turn=False
    ),
    "phi-3": Family(PHI_3, "<|endoftext|>", "<|end|>", "12", f"<think>\n{THOUGHT}"),
}
